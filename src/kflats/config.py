"""What to do to a table: one frozen description, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from kflats.errors import InputError
from kflats.factors.budget import Budget

METHODS = ("flats", "projective", "messi", "svd", "codes")
EFFORTS = ("thorough", "fast")


class _Unchosen(str):
    """A method that follows from the size, as nobody chose one; ``replace`` finds it anew."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class CompressionConfig:
    """How :func:`kflats.compress_` makes a table small.

    Exactly one of ``compression``, ``target_bytes``, ``bits`` and ``rank`` sets the size.

    Parameters
    ----------
    compression : float, optional
        Fraction of the table's parameters to remove, between 0 and 1, both excluded.
    target_bytes : int, optional
        Most bytes of the factorised table on disk.
    bits : float, optional
        Most bits on disk per parameter of the dense table, everything counted; the method must be
        'codes', which is the default then.
    rank : int, optional
        Dimension of the subspaces.
    method : {'flats', 'projective', 'messi', 'svd', 'codes'}, optional
        Left out it is 'codes' with ``bits`` and 'flats' with any other size. 'flats' finds affine
        subspaces whose dimensions are paid for by one budget, with bases in echelon form: the
        least error known for a size. 'projective' is the paper's geometry, ``n_clusters``
        subspaces of one rank, from the best known start. 'messi' is the paper's own
        procedure: ten random starts, plain alternation. 'svd' is one subspace. 'codes' stores
        packed codes of few bits, more for rows of large ``sample_weight``; its size is
        ``target_bytes`` or ``bits``, and its ``options`` are those of
        :class:`kflats.quantization.fit.CodeSettings`.
    n_clusters : int, optional
        Number of subspaces; None tries several and keeps the one of least error.
    effort : {'thorough', 'fast'}, default='thorough'
        How long 'flats' searches: up to 30, or 8, times as long as an SVD of the table.
    affine : bool, optional
        Whether each subspace has a mean; None means yes for 'flats' and no otherwise.
    exact_ids : tuple of int, default=()
        Rows to keep as they are, for instance the special tokens.
    sample_weight : Tensor of shape (num_embeddings,), optional
        Weights of the squared errors of the rows.
    relative : float, optional
        0 measures errors of rows as they are, 1 in units of the row: rows are weighted by
        ``norm ** (-2 * relative)``, on top of ``sample_weight``. Frequent tokens often have short
        rows. None means 0.5 for 'codes' without ``sample_weight``, 1 where 'flats' have one or are
        searched for fast, and 0 otherwise.
    metric : Tensor of shape (embedding_dim, embedding_dim), optional
        Measures errors in the directions the network uses, see
        :func:`kflats.weighting.calibration.feature_moments`; the method must be 'flats'.
    modules : tuple of str, optional
        Names of the embeddings to compress; None means the token table.
    random_state : int, default=0
        Seed.
    device : str, optional
        Where to compute; None means where the table is.
    options : dict, optional
        Further parameters of :class:`kflats.ProjectiveClustering`.

    Examples
    --------
    >>> config = CompressionConfig(compression=0.4)
    >>> config.method, config.has_means, str(config.budget)
    ('flats', True, 'compression=0.4')
    """

    compression: float | None = None
    target_bytes: int | None = None
    bits: float | None = None
    rank: int | None = None
    method: str = _Unchosen("flats")
    n_clusters: int | None = None
    effort: str = "thorough"
    affine: bool | None = None
    exact_ids: tuple[int, ...] = ()
    sample_weight: Tensor | None = None
    relative: float | None = None
    metric: Tensor | None = None
    modules: tuple[str, ...] | None = None
    random_state: int = 0
    device: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.method, _Unchosen):
            found = "flats" if self.bits is None else "codes"
            object.__setattr__(self, "method", _Unchosen(found))
        if self.bits is not None or self.method == "codes":
            self._check_bits()
        else:
            self.budget  # noqa: B018  checks the size
        if self.method not in METHODS:
            raise InputError(f"method={self.method!r} must be one of {METHODS}.")
        if self.effort not in EFFORTS:
            raise InputError(f"effort={self.effort!r} must be one of {EFFORTS}.")
        if self.relative is not None and not 0 <= self.relative <= 1:
            raise InputError(f"relative={self.relative} must be between 0 and 1.")
        if self.metric is not None and self.method != "flats":
            raise InputError(f"metric needs method='flats', got {self.method!r}.")
        if not 0 <= self.random_state < 2**32:
            raise InputError(f"random_state={self.random_state} must be between 0 and 2**32 - 1.")
        self._check_clusters()
        clashes = sorted({each.name for each in fields(self)} & set(self.options))
        if clashes:
            raise InputError(
                f"options has {', '.join(clashes)}: give {'them' if clashes[1:] else 'it'} to "
                "CompressionConfig itself; options are those of the fit that it does not name."
            )

    def _check_clusters(self) -> None:
        if self.n_clusters is not None and self.n_clusters < 1:
            raise InputError(f"n_clusters={self.n_clusters} must be at least 1.")
        if self.method == "svd" and self.n_clusters not in (None, 1):
            raise InputError(
                f"method='svd' has one subspace, got n_clusters={self.n_clusters}: leave it out, "
                "or use method='projective'."
            )
        if self.rank is not None and self.method != "svd" and self.n_clusters is None:
            raise InputError(
                f"rank={self.rank} needs n_clusters too; with a compression or a target size the "
                "number of clusters can be chosen automatically."
            )

    def _check_bits(self) -> None:
        sizes = {"compression": self.compression, "rank": self.rank}
        given = [name for name, value in sizes.items() if value is not None]
        if self.bits is not None and self.method != "codes":
            raise InputError(
                f"method={self.method!r} takes no bits, got bits={self.bits}: leave the method "
                "out, for bits are those of method='codes', or give a compression or target_bytes."
            )
        if given or (self.bits is None) == (self.target_bytes is None):
            raise InputError(
                f"method={self.method!r} with bits={self.bits}, target_bytes={self.target_bytes} "
                f"and {given or 'nothing else'}: method='codes' takes bits or target_bytes, one of "
                "them."
            )
        if self.bits is not None and not 0 < self.bits <= 32:
            raise InputError(f"bits={self.bits} must be above 0 and at most 32.")
        if self.target_bytes is not None and self.target_bytes < 1:
            raise InputError(f"target_bytes={self.target_bytes} must be at least 1.")
        if self.affine is not None:
            raise InputError(f"affine={self.affine}: the bases of codes always have means.")

    def code_bytes(self, num_parameters: int) -> int:
        """Return the most bytes of a table of so many parameters, for ``method='codes'``."""
        if self.target_bytes is not None:
            return self.target_bytes
        return int((self.bits or 0.0) * num_parameters / 8)

    @property
    def has_means(self) -> bool:
        """Whether the subspaces are affine."""
        return self.method in ("flats", "codes") if self.affine is None else self.affine

    @property
    def relative_power(self) -> float:
        """How much errors count in units of their row."""
        if self.relative is not None:
            return self.relative
        if self.method == "codes":
            return 0.5 if self.sample_weight is None else 0.0
        is_safer = self.sample_weight is not None or self.effort == "fast"
        return 1.0 if self.method == "flats" and is_safer else 0.0

    @property
    def budget(self) -> Budget:
        """The size as a :class:`kflats.Budget`."""
        return Budget(compression=self.compression, num_bytes=self.target_bytes, rank=self.rank)
