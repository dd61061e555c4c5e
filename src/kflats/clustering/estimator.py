"""ProjectiveClustering: k subspaces for the rows of a matrix, as a scikit-learn estimator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from kflats.clustering import arrays
from kflats.clustering.arrays import Array
from kflats.clustering.fitted import Fitted
from kflats.clustering.losses import LOSSES
from kflats.clustering.plans import FitProgress, plan_of
from kflats.clustering.projection import place, project
from kflats.clustering.rows import Rows
from kflats.clustering.runs import Run, best_of_coreset, best_run
from kflats.errors import InputError
from kflats.factors.budget import Budget
from kflats.units import Unit


class ProjectiveClustering(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator
):
    """Cluster rows around ``n_clusters`` subspaces.

    Minimises the sum over rows of the squared distance to the *nearest* subspace (the paper's
    section 2). Alternates two steps: every row joins its nearest subspace; every subspace is
    refitted to its rows, as the span of the leading eigenvectors of their second moments.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of subspaces (``k`` in the paper).
    rank : int, list of int or Budget, default=1
        Dimension of the subspaces (``j`` in the paper), at most ``n_features``: one for all, one
        for each, or those of least inertia whose numbers fit a budget (section 2.1 proposes a
        dimension per subspace). With a budget a row joins the subspace of least squared distance
        plus the price of the coefficients it stores there.
    init : {'grown', 'spherical', 'random'} or array of shape (n_samples,), default='grown'
        First partition. 'random' is the paper's. 'spherical' is k-means of the directions of the
        rows. 'grown' goes on from it with subspaces of an eighth, a quarter and half the rank.
        An array gives the labels, ``0 ... n_clusters - 1``.
    n_init : int or 'auto', default='auto'
        Number of starts; the one with the lowest inertia is kept. 'auto' is 10 for 'random'
        and 1 otherwise.
    max_iter : int, default=100
        Most fits of the subspaces per start, the first included.
    tol : float, default=2e-3
        Stop when a step lowers the inertia by at most this fraction of it. 0 goes on until
        nothing changes.
    affine : bool, default=False
        Fit flats with a mean each instead of subspaces through the origin (section 2.1).
    echelon : bool, default=False
        Whether the budget counts bases in echelon form, ``rank * (n_features - rank)`` numbers
        each. ``bases_`` are orthonormal either way.
    assignment : {'leave_one_out', 'nearest'}, default='leave_one_out'
        'nearest' is the paper's rule. 'leave_one_out' first moves rows by their distance to the
        subspaces fitted without them, which escapes poor optima, then uses 'nearest'.
    loss : str, default='squared'
        What a row costs: 'squared', 'power' (the distance to the power ``loss_power``), 'lp' (the
        sum over coordinates of the residual to the power ``loss_power``), 'huber', 'cauchy',
        'geman_mcclure', 'welsch', 'tukey' or 'truncated' (section 2.1). Others than 'squared' are
        found by iteratively reweighted least squares, with the plain assignment; for 'lp'
        ``inertia_`` is that of the points found on the flats, at most that of the projections.
    loss_scale : float or None, default=None
        Distance at which the loss bends; None takes it from the data, see
        :class:`kflats.clustering.losses.Loss`.
    loss_power : float, default=1.0
        Above 0 and at most 2; from 1 for 'lp'.
    coreset : int or None, default=None
        Fit on so many rows, drawn by their sensitivity and weighted for what they stand for; then
        one pass over all rows assigns and refits. For tables of millions of rows; needs the loss
        'squared'. ``inertia_history_`` has the final value only.
    random_state : int, RandomState or None, default=None
        Seed of the starts. Equal seeds give equal results on one device.
    device : str, torch.device or None, default=None
        Where to compute, for instance 'cuda'. None means where the data are.
    dtype : {'float32', 'float64'}, torch.dtype or None, default=None
        Working type. None means float64 for float64 input and float32 for everything else;
        float16 and bfloat16 input is widened block by block.
    search_dtype : {'auto', 'bfloat16'} or None, default=None
        Type of the products that choose subspaces in float32 fits. None is the working type,
        'auto' bfloat16 where the processor multiplies it in hardware: faster, and no worse. With
        fixed ranks the last assignment is in the working type.
    callback : callable, default=None
        Called with a :class:`FitProgress` after every refitting.

    Attributes
    ----------
    labels_ : array of shape (n_samples,), int64
        Index of the nearest subspace of every row; with a budget, of the one it was fitted with.
    ranks_ : tuple of int
        Dimension of every subspace. With a budget a cluster may come out empty, with rank 0.
    bases_ : array of shape (n_clusters, max(ranks_), n_features)
        Orthonormal rows, the direction of largest variance first; zeros beyond a smaller rank.
    means_ : array of shape (n_clusters, n_features) or None
        A point of each flat; None unless ``affine``.
    inertia_ : float
        Weighted sum of the losses, for 'squared' of the squared distances, in squared units of
        ``X``; from residuals, accumulated in float64. Rows of any magnitude are fitted equally
        well, but this is infinite or 0 where squares leave the range of float64.
    cluster_inertia_ : array of shape (n_clusters,), float64
        Its share per cluster.
    price_ : float
        What a stored number costs in units of the inertia; 0 without a budget.
    loss_scale_ : float or None
        Scale of the loss; None for 'squared'.
    inertia_history_ : list of float
        Inertia at the start and after every refitting of the best run; never rises.
    n_iter_ : int
        Fits of the subspaces in the best run, the first included.
    n_features_in_ : int
        Number of columns seen by ``fit``.
    feature_names_in_ : ndarray of str
        Column names, where ``X`` has them.

    Notes
    -----
    Arrays come back as the kind that came in: NumPy arrays or torch tensors. A cluster with
    fewer rows than ``rank`` gets its basis completed to ``rank`` orthonormal rows. An empty
    cluster takes the rows that lie farthest from their subspaces; where all rows lie on theirs
    it stays empty, with a ``ConvergenceWarning``. Rows of zeros lie on every subspace and belong
    to the first. ``transform`` gives coefficients, not the distances that
    :class:`sklearn.cluster.KMeans` gives.

    References
    ----------
    Maalouf, Lang, Rus, Feldman. "Deep Learning Meets Projective Clustering". ICLR 2021.
    Deviations (start, leave-one-out rule, stopping) are listed in ``docs/method.md``.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    >>> model = ProjectiveClustering(n_clusters=2, rank=1, random_state=0).fit(X)
    >>> bool(model.labels_[0] == model.labels_[1] != model.labels_[2])
    True
    >>> np.allclose(model.inverse_transform(model.transform(X), model.labels_), X)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "rank": [Interval(Integral, 1, None, closed="left"), list, tuple, Budget],
        "init": [StrOptions({"grown", "spherical", "random"}), "array-like", Tensor],
        "n_init": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "affine": ["boolean"],
        "echelon": ["boolean"],
        "assignment": [StrOptions({"leave_one_out", "nearest"})],
        "loss": [StrOptions(set(LOSSES))],
        "loss_scale": [Interval(Real, 0, None, closed="neither"), None],
        "loss_power": [Interval(Real, 0, 2, closed="right")],
        "coreset": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
        "device": [str, torch.device, None],
        "dtype": [str, torch.dtype, None],
        "search_dtype": [StrOptions({"auto", "bfloat16"}), None],
        "callback": [callable, None],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        rank: int | Sequence[int] | Budget = 1,
        init: str | Array = "grown",
        n_init: int | str = "auto",
        max_iter: int = 100,
        tol: float = 2e-3,
        affine: bool = False,
        echelon: bool = False,
        assignment: str = "leave_one_out",
        loss: str = "squared",
        loss_scale: float | None = None,
        loss_power: float = 1.0,
        coreset: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        search_dtype: str | None = None,
        callback: Callable[[FitProgress], None] | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.rank = rank
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.affine = affine
        self.echelon = echelon
        self.assignment = assignment
        self.loss = loss
        self.loss_scale = loss_scale
        self.loss_power = loss_power
        self.coreset = coreset
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.search_dtype = search_dtype
        self.callback = callback

    def fit(self, X: Array, y: None = None, sample_weight: Array | None = None) -> Self:  # noqa: ARG002
        """Find the subspaces.

        Parameters
        ----------
        X : array or tensor of shape (n_samples, n_features)
            Finite values of any floating type; integers are converted.
        y : None
            Ignored; present for pipelines.
        sample_weight : array or tensor of shape (n_samples,), optional
            Non-negative weights of the squared distances; None means 1 each.

        Returns
        -------
        ProjectiveClustering
            This estimator.

        Raises
        ------
        ValueError
            If a parameter is out of range, ``X`` is not a finite matrix, ``rank`` exceeds
            ``n_features``, there are fewer rows than clusters, or no ranks meet a budget.
        """
        self._validate_params()
        table = self._table(X, reset=True)
        unit = Unit.of(table)
        rows = self._rows(unit.divide(table), sample_weight)
        plan, random = plan_of(self, rows, unit), check_random_state(self.random_state)
        if plan.coreset is None:
            best = best_run(rows, plan, random)
        else:
            best = best_of_coreset(rows, plan, random)
        self._keep(best, rows, X, unit)
        return self

    def predict(self, X: Array) -> Array:
        """Return the index of the nearest subspace of every row, shape (n_samples,), int64."""
        check_is_fitted(self)
        return arrays.like(self._fitted.labels(self._table(X, reset=False)), X)

    def transform(self, X: Array) -> Array:
        """Return every row's coefficients in the basis of its nearest subspace.

        Parameters
        ----------
        X : array or tensor of shape (n_samples, n_features)
            Rows in the space of the fitted data.

        Returns
        -------
        array or tensor of shape (n_samples, max(ranks_))
            ``(x - mean) @ basis.T`` in the working dtype, zeros beyond a smaller rank. The label
            that each row belongs to is what :meth:`predict` returns.
        """
        check_is_fitted(self)
        table, like = self._table(X, reset=False), self._fitted.flats.eigenvectors
        labels = self._fitted.labels(table)
        rows = Rows(table.to(like.device), None, like.dtype)
        bases, means = self.bases_, self.means_
        bases = arrays.as_tensor(bases).to(like)
        means = None if means is None else arrays.as_tensor(means).to(like)
        return arrays.like(project(rows, labels, bases, means), X)

    def inverse_transform(self, X: Array, labels: Array | None = None) -> Array:
        """Return rows from coefficients.

        Parameters
        ----------
        X : array or tensor of shape (n_samples, max(ranks_))
            Coefficients, as from :meth:`transform`.
        labels : array or tensor of shape (n_samples,), optional
            Subspace of every row, as from :meth:`predict`. May be left out only where there is
            one cluster.

        Returns
        -------
        array or tensor of shape (n_samples, n_features)
            Points of the subspaces.

        Raises
        ------
        ValueError
            If ``labels`` are missing, or shapes or label values do not fit.
        """
        check_is_fitted(self)
        coefficients = arrays.as_tensor(X)
        if coefficients.shape[1:] != (0,):  # what transform gives where all ranks are 0
            coefficients = arrays.check_matrix(coefficients)
        dtype = arrays.choose_dtype(self.dtype, coefficients.dtype)
        coefficients = coefficients.to(dtype)
        index = self._check_labels(coefficients, labels)
        bases = arrays.as_tensor(self.bases_).to(coefficients)
        means = None if self.means_ is None else arrays.as_tensor(self.means_).to(coefficients)
        return arrays.like(place(coefficients, index, bases, means), X)

    def score(self, X: Array, y: None = None, sample_weight: Array | None = None) -> float:  # noqa: ARG002
        """Return minus the inertia of ``X``: the larger, the better the subspaces fit."""
        check_is_fitted(self)
        return -self._fitted.inertia(self._table(X, reset=False), sample_weight)

    def _check_labels(self, coefficients: Tensor, labels: Array | None) -> Tensor:
        n_clusters, rank, _ = self.bases_.shape
        if coefficients.shape[1] != rank:
            raise InputError(
                f"X has shape {tuple(coefficients.shape)}; coefficients have {rank} columns."
            )
        if labels is None:
            if n_clusters > 1:
                raise InputError(
                    f"labels are needed to place coefficients in one of {n_clusters} subspaces: "
                    "pass labels=model.predict(X)."
                )
            labels = torch.zeros(len(coefficients), dtype=torch.int64)
        device = coefficients.device
        return arrays.check_labels(labels, len(coefficients), n_clusters, device, "labels")

    def _table(self, X: Array, *, reset: bool) -> Tensor:
        """Validate ``X`` and return it as a tensor where it is."""
        if not isinstance(X, Tensor):
            return arrays.as_tensor(validate_data(self, X, reset=reset, dtype=arrays.FLOATS))
        table = arrays.check_matrix(X.detach())
        if reset:
            self.n_features_in_ = table.shape[1]
        elif table.shape[1] != self.n_features_in_:
            raise InputError(
                f"X has {table.shape[1]} features, but ProjectiveClustering was fitted with "
                f"{self.n_features_in_}."
            )
        return table

    def _rows(self, table: Tensor, sample_weight: Array | None) -> Rows:
        dtype = arrays.choose_dtype(self.dtype, table.dtype)
        table = table.to(arrays.choose_device(self.device, table.device))
        weights = None
        if sample_weight is not None:
            weights = arrays.check_weights(sample_weight, len(table), table.device, dtype)
        return Rows.of(table, weights, dtype, self.affine)

    def _keep(self, best: Run, rows: Rows, X: Array, unit: Unit) -> None:
        self._fitted = Fitted(best.flats, best.loss, rows.shift, unit)
        degree, scale = best.loss.degree, best.loss.scale
        self.labels_ = arrays.like(best.labels, X)
        self.bases_ = arrays.like(best.flats.bases, X)
        means = best.flats.means
        if means is not None and rows.shift is not None:
            means = means + rows.shift
        self.means_ = None if means is None else arrays.like(unit.multiply(means), X)
        parts = [unit.times(part, degree) for part in best.cluster_inertia.tolist()]
        self.cluster_inertia_ = arrays.like(best.cluster_inertia.new_tensor(parts), X)
        self.inertia_ = unit.times(best.inertia, degree)
        self.inertia_history_ = [unit.times(inertia, degree) for inertia in best.history]
        self.n_iter_ = len(best.history)
        self.ranks_ = best.flats.ranks
        self.price_ = unit.times(best.flats.price, degree)
        self.loss_scale_ = None if scale is None else unit.times(scale, 1)
        self._n_features_out = max(self.ranks_)
        n_empty = int((torch.bincount(best.labels, minlength=self.n_clusters) == 0).sum())
        if n_empty and best.flats.price == 0:
            warnings.warn(
                f"{n_empty} of n_clusters={self.n_clusters} clusters are empty: the other "
                "subspaces already hold every row. Fewer clusters or a smaller rank do as well.",
                ConvergenceWarning,
                stacklevel=3,
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
