"""CodeSettings: the form of a table in packed codes."""

from __future__ import annotations

from dataclasses import dataclass

from kflats.errors import InputError
from kflats.quantization.codebooks import LEVELS, WIDTHS
from kflats.quantization.shape import BASIS_DTYPES


@dataclass(frozen=True, kw_only=True)
class CodeSettings:
    """How a table is coded.

    Attributes
    ----------
    n_clusters : int
        Bases ``k``; rows are divided among them by an affine clustering.
    rotated : bool
        Whether coefficients are taken along the principal axes of each cluster, with bits by
        their variance, or are the columns as they are, all with the same bits.
    levels : {'lloyd-max', 'uniform'}
        See :func:`kflats.quantization.codebooks.gaussian_levels`; the first are fitted.
    basis_bits : {8, 16}
        Of the numbers in bases and means.
    max_rungs : int
        Most different rates of rows.
    width : int or None
        Bits of every coefficient of every row, as plain integers have; for columns only. The size
        is then a limit. None gives bits where they pay.
    random_state : int
        Seed of the clustering.
    """

    n_clusters: int = 1
    rotated: bool = True
    levels: str = "lloyd-max"
    basis_bits: int = 8
    max_rungs: int = 6
    width: int | None = None
    random_state: int = 0

    def __post_init__(self) -> None:
        if self.n_clusters < 1:
            raise InputError(f"n_clusters={self.n_clusters} must be at least 1.")
        if self.max_rungs < 1:
            raise InputError(f"max_rungs={self.max_rungs} must be at least 1.")
        if self.width is not None and (self.rotated or self.width not in WIDTHS):
            raise InputError(
                f"width={self.width} with rotated={self.rotated}: give one of {WIDTHS}, and "
                "rotated=False."
            )
        if self.levels not in LEVELS:
            raise InputError(f"levels={self.levels!r} must be one of {LEVELS}.")
        if self.basis_bits not in BASIS_DTYPES:
            raise InputError(f"basis_bits={self.basis_bits} must be one of {[*BASIS_DTYPES]}.")
