"""Dictionary learning for comparison: each row a combination of few atoms of one dictionary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode
from torch import Tensor

from kflats.errors import BudgetError
from kflats.units import Unit


@dataclass(frozen=True)
class DictionaryResult:
    """A dictionary and what it leaves.

    Attributes
    ----------
    n_atoms : int
        Rows of the dictionary.
    n_nonzero : int
        Coefficients per row.
    num_parameters : int
        ``n * n_nonzero + n_atoms * d``; which atoms a row uses is not counted, as labels are not.
    squared_relative_error : float
        ``||A - A_hat||_F ** 2 / ||A||_F ** 2``.
    """

    n_atoms: int
    n_nonzero: int
    num_parameters: int
    squared_relative_error: float


def dictionary_error(
    table: Tensor, compression: float, n_atoms: int, *, random_state: int = 0, max_iter: int = 10
) -> DictionaryResult:
    """Return the error of a learnt dictionary with a sparse code per row, at a compression.

    The paper relates projective clustering to dictionary learning: k subspaces of dimension j are
    a dictionary of k * j atoms of which a row may use one block of j. Here it may use any
    ``n_nonzero`` atoms, found by orthogonal matching pursuit (scikit-learn).

    Parameters
    ----------
    table : Tensor of shape (n, d)
        Finite values; the time grows with ``n * n_nonzero ** 2``, so give a sample of a large one.
    compression : float
        Fraction of the parameters to remove.
    n_atoms : int
        Size of the dictionary.
    random_state : int, default=0
        Seed.
    max_iter : int, default=10
        Passes over the rows.

    Raises
    ------
    BudgetError
        If the dictionary alone is larger than the budget.
    """
    n, d = table.shape
    n_nonzero = int((1 - compression) * n * d - n_atoms * d) // n
    if n_nonzero < 1:
        raise BudgetError(
            f"a dictionary of {n_atoms} x {d} leaves no coefficient for {n} rows at "
            f"compression={compression}: use fewer atoms."
        )
    rows = Unit.of(table.detach()).divide(table.detach()).double().cpu().numpy()
    learner = MiniBatchDictionaryLearning(
        n_atoms,
        max_iter=max_iter,
        batch_size=1024,
        transform_algorithm="omp",
        transform_n_nonzero_coefs=n_nonzero,
        fit_algorithm="cd",
        random_state=random_state,
    ).fit(rows)
    codes = sparse_encode(rows, learner.components_, algorithm="omp", n_nonzero_coefs=n_nonzero)
    error = np.square(rows - codes @ learner.components_).sum() / np.square(rows).sum()
    return DictionaryResult(n_atoms, n_nonzero, n * n_nonzero + n_atoms * d, float(error))
