"""fit_codes: the form of packed codes with the least error for the size."""

from __future__ import annotations

from dataclasses import fields

from torch import Tensor

from kflats.config import CompressionConfig
from kflats.errors import BudgetError, InputError
from kflats.factors.fit import row_weights
from kflats.linalg import check_dtype
from kflats.quantization.codes import Codes
from kflats.quantization.fit import check_error, unchecked_codes, weighted_error
from kflats.quantization.settings import CodeSettings

MAX_CLUSTERS = 8


def fit_codes(weight: Tensor, config: CompressionConfig, exact_ids: Tensor) -> Codes:
    """Return the codes of a table, of the best form that the config leaves open.

    Parameters
    ----------
    weight : Tensor of shape (num_embeddings, embedding_dim)
        The table.
    config : CompressionConfig
        Of method 'codes'. Without ``n_clusters`` and ``rotated`` among the options the columns as
        they are, one rotation, and then twice as many rotations as long as that helps are tried.
    exact_ids : Tensor of shape (m,)
        Rows to store as they are.

    Raises
    ------
    BudgetError
        If no form is small enough; it names the smallest size.
    InputError
        If an option is unknown, or the codes would be no better than zeros.
    """
    check_dtype(weight)
    weights = row_weights(weight, config, exact_ids)
    target = config.code_bytes(weight.numel())
    options = {"random_state": config.random_state, **config.options}
    known = [field.name for field in fields(CodeSettings)]
    if set(options) - set(known):
        raise InputError(
            f"codes have no options {sorted(set(options) - set(known))}; they have {known}."
        )
    best: Codes | None = None
    best_error, refusals = float("inf"), []
    for rotated, n_clusters in _forms(config):
        settings = CodeSettings(**{"n_clusters": n_clusters, "rotated": rotated, **options})
        try:
            codes = unchecked_codes(weight, target, weights, exact_ids, settings)
        except BudgetError as error:
            refusals.append(error)
            if rotated:
                break  # more clusters need more bytes
            continue
        except InputError:
            if n_clusters == 1 or config.n_clusters is not None:
                raise
            break  # fewer rows than clusters
        found = weighted_error(weight, codes, weights)
        if best is None or found < best_error:
            best, best_error = codes, found
        elif rotated:
            break
    if best is None:
        raise refusals[-1]  # a rotation without directions is the smallest form
    check_error(best_error, weight)
    return best


def _forms(config: CompressionConfig) -> list[tuple[bool, int]]:
    """Return the forms to try, as (rotated, n_clusters)."""
    rotated = config.options.get("rotated", False if config.options.get("width") else None)
    if config.n_clusters is not None:
        return [(True if rotated is None else bool(rotated), config.n_clusters)]
    if rotated is not None:
        return [(bool(rotated), 1)]
    counts = [1]
    while counts[-1] < MAX_CLUSTERS:
        counts.append(2 * counts[-1])
    return [(False, 1), *((True, count) for count in counts)]
