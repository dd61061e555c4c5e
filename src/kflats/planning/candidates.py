"""Every way to store a table in a number of bytes that kflats can save, and some it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kflats.analysis.baselines import half, rounded
from kflats.config import CompressionConfig
from kflats.errors import BudgetError, InputError, MissingExtraError
from kflats.factors.fit import factorize, row_weights
from kflats.linalg import check_table, squared_relative_error
from kflats.planning.plain import plain_config
from kflats.planning.vectors import product_quantized, residual_quantized
from kflats.quantization.codebooks import WIDTHS
from kflats.quantization.codes import Codes
from kflats.quantization.fit import code_table
from kflats.quantization.search import fit_codes
from kflats.quantization.settings import CodeSettings
from kflats.units import Unit

PAPER_CLUSTERS = 5
FITTED = ", fitted levels"
"""How the names of plain integers end that kflats saves."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to store the table.

    Attributes
    ----------
    name : str
        Method and setting.
    table : Tensor of shape (num_embeddings, embedding_dim)
        The rows that come back, in the dtype of the original.
    num_bytes : int
        On disk, everything counted.
    error : float
        Weighted squared relative error, the measure of the plan.
    config : CompressionConfig or None
        What makes it again with :func:`kflats.compress_`; None for comparisons only.
    """

    name: str
    table: Tensor
    num_bytes: int
    error: float
    config: CompressionConfig | None


class Candidates:
    """The candidates for one table.

    Parameters
    ----------
    weight : Tensor of shape (num_embeddings, embedding_dim)
        The table.
    config : CompressionConfig
        Row weights, exact rows, seed and further settings that all candidates share; its size is
        replaced by the one asked for.
    """

    def __init__(self, weight: Tensor, config: CompressionConfig) -> None:
        check_table(weight, "the table")
        self.weight = weight.detach()
        self.is_ordinary = Unit.of(self.weight).is_one
        self.config = config
        ids = sorted(set(config.exact_ids))
        self.exact_ids = torch.tensor(ids, dtype=torch.int64, device=weight.device)
        self.weights = row_weights(self.weight, config, self.exact_ids)

    def references(self) -> Iterator[Candidate]:
        """Yield plain casts and roundings, which have the sizes they have.

        Those that cannot hold the magnitudes of the table are left out.
        """
        makers: dict[str, Callable[[], Any]] = {
            "fp16": lambda: half(self.weight),
            **{f"int{bits}": _rounder(self.weight, bits) for bits in (8, 4, 3, 2)},
        }
        for name, make in makers.items():
            try:
                made = make()
            except InputError:  # beyond float16
                continue
            yield self._candidate(f"{name}, absmax", made.table, made.num_bytes, None)

    def at(self, target_bytes: int, *, everything: bool = True) -> Iterator[Candidate]:
        """Yield what can be stored in so many bytes.

        With ``everything`` also what loses at few bytes: subspaces of floats, and vector
        quantisation, which kflats does not save.
        """
        yield from self._plain(target_bytes)
        for name, options, n_clusters in (
            ("codes of columns", {"rotated": False}, 1),
            ("codes, one rotation", {"rotated": True}, 1),
        ):
            yield from self._codes(name, target_bytes, options, n_clusters)
        if everything:
            yield from self._codes("codes, 2 rotations", target_bytes, {"rotated": True}, 2)
            yield from self._floats(target_bytes)
            yield from self._vectors(target_bytes)

    def _plain(self, target_bytes: int) -> Iterator[Candidate]:
        """Yield the same bits for all rows: the widest plain intN that fits."""
        fitting = [bits for bits in WIDTHS if self._plain_bytes(bits) <= target_bytes]
        made = self._plain_candidate(max(fitting)) if fitting else None
        if made is not None:
            yield made

    def plain_above(self, target_bytes: int) -> Candidate | None:
        """Return the narrowest plain intN that takes more bytes; None if all take fewer."""
        larger = [bits for bits in WIDTHS if self._plain_bytes(bits) > target_bytes]
        return self._plain_candidate(min(larger)) if larger else None

    def _plain_bytes(self, bits: int) -> int:
        return plain_config(self.config, self.weight, bits).code_bytes(self.weight.numel())

    def _plain_candidate(self, bits: int) -> Candidate | None:
        """Return plain intN with fitted levels, no weights; None if it cannot hold the table."""
        config = plain_config(self.config, self.weight, bits)
        size = config.code_bytes(self.weight.numel())
        settings = CodeSettings(**config.options)
        exact = torch.tensor(config.exact_ids, dtype=torch.int64, device=self.weight.device)
        codes = self._tried(code_table, size, settings=settings, exact_ids=exact)
        if codes is None:
            return None
        table = codes.table().to(self.weight.dtype)
        return self._candidate(f"int{bits}{FITTED}", table, codes.num_bytes, config)

    def _codes(
        self, name: str, target_bytes: int, options: dict[str, Any], n_clusters: int
    ) -> Iterator[Candidate]:
        config = replace(self._sized(target_bytes), options=options, n_clusters=n_clusters)
        codes = self._tried(fit_codes, config, self.exact_ids)
        if codes is None:
            return
        table = codes.table().to(self.weight.dtype)
        yield self._candidate(name, table, codes.num_bytes, config)

    def _tried(self, make: Callable[..., Codes], *size: Any, **options: Any) -> Codes | None:
        """Return codes, or None where none are small enough or hold the magnitudes."""
        try:
            return make(self.weight, *size, **options)
        except BudgetError:
            return None
        except InputError:
            if self.is_ordinary:
                raise
            return None

    def _sized(self, target_bytes: int) -> CompressionConfig:
        return replace(
            self.config,
            method="codes",
            target_bytes=target_bytes,
            bits=None,
            compression=None,
            rank=None,
            n_clusters=1,
            affine=None,
        )

    def _floats(self, target_bytes: int) -> Iterator[Candidate]:
        """Yield an SVD, the paper's geometry and flats, in the dtype of the table."""
        for method, n_clusters in (("svd", 1), ("projective", PAPER_CLUSTERS), ("flats", None)):
            config = replace(
                self._sized(target_bytes), method=method, n_clusters=n_clusters, effort="fast"
            )
            try:
                factors = factorize(self.weight, config, self.exact_ids)
            except BudgetError:
                continue
            table = factors.reconstruct()
            table[self.exact_ids] = self.weight[self.exact_ids]
            added = len(self.exact_ids) * self.weight.shape[1] * self.weight.element_size()
            names = {"projective": f"the paper, k = {n_clusters}", "svd": "SVD"}
            size = factors.num_bytes + added
            yield self._candidate(names.get(method, method), table, size, config)

    def _vectors(self, target_bytes: int) -> Iterator[Candidate]:
        for name, make in (("PQ", product_quantized), ("RQ", residual_quantized)):
            try:
                made = make(self.weight, target_bytes, self.config.random_state)
            except (BudgetError, MissingExtraError):
                continue
            yield self._candidate(f"{name}, faiss", made.table, made.num_bytes, None)

    def _candidate(
        self, name: str, table: Tensor, num_bytes: int, config: CompressionConfig | None
    ) -> Candidate:
        return Candidate(name, table, num_bytes, self.error(table), config)

    def error(self, table: Tensor) -> float:
        """Return the weighted squared relative error of a table that stands for this one."""
        return squared_relative_error(self.weight, table, self.weights)


def _rounder(weight: Tensor, bits: int) -> Callable[[], Any]:
    return lambda: rounded(weight, bits)
