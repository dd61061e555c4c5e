"""plan: the best way to store a table in a number of bytes, and the frontier around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from kflats.config import CompressionConfig
from kflats.errors import BudgetError, InputError
from kflats.planning.candidates import FITTED, Candidate, Candidates
from kflats.report.compression import provenance
from kflats.tables import Table, find_tables

Metric = Callable[[nn.Module], float]
RATES = (8.0, 6.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.0, 0.75, 0.5)
"""Bits per parameter that are tried for a largest drop."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the frontier.

    Attributes
    ----------
    name : str
        Method.
    num_bytes : int
        Of the table on disk.
    bits : float
        Per parameter of the dense table.
    error : float
        Weighted squared relative error.
    metric : float or None
        Of the model with this table, where it was measured.
    can_be_saved : bool
        Whether kflats writes it; the others are comparisons.
    """

    name: str
    num_bytes: int
    bits: float
    error: float
    metric: float | None
    can_be_saved: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do to a table.

    Attributes
    ----------
    config : CompressionConfig
        For :func:`kflats.compress_`.
    chosen : Row
        What it gives.
    rows : tuple of Row
        All that was compared, by bytes.
    dense_metric : float or None
        Of the model as it was.
    verdict : str
        One sentence.
    provenance : dict
        Versions and machine.
    """

    config: CompressionConfig
    chosen: Row
    rows: tuple[Row, ...]
    dense_metric: float | None
    verdict: str
    provenance: dict[str, str] = field(default_factory=provenance)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object, without row weights."""
        return {
            "chosen": asdict(self.chosen),
            "rows": [asdict(row) for row in self.rows],
            "dense_metric": self.dense_metric,
            "verdict": self.verdict,
            "provenance": self.provenance,
        }


def plan(
    model: nn.Module,
    config: CompressionConfig,
    *,
    metric: Metric | None = None,
    max_drop: float | None = None,
    n_confirm: int = 3,
    everything: bool = True,
    on_start: Callable[[str], None] | None = None,
) -> Plan:
    """Compare every way to store the table of a model, and choose one.

    All candidates are ranked by their weighted squared relative error; with a metric the best
    few are tried in the model. Only what kflats can save is chosen; plain integers are among it.

    Parameters
    ----------
    model : nn.Module
        A dense model with one table to compress; as it was afterwards.
    config : CompressionConfig
        ``target_bytes`` or ``bits`` set the size (for ``max_drop`` the largest that is tried);
        row weights, exact rows, modules and seed hold for all candidates.
    metric : callable, optional
        Takes the model, returns a number of which more is better.
    max_drop : float, optional
        Choose the smallest size at which the metric falls by no more than this; needs a metric.
    n_confirm : int, default=3
        How many candidates are tried with the metric.
    everything : bool, default=True
        Whether to compare also what seldom wins: subspaces of floats and vector quantisation, and
        to try the plain integers next to the size with the metric too.
    on_start : callable, optional
        Called with a title before every step.

    Raises
    ------
    InputError
        If the model has several tables to compress, ``max_drop`` comes without metric or is below
        0, or the metric returns something else than a finite number.
    BudgetError
        If no method is that small; it names the smallest size.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(2000, 32), torch.nn.Linear(32, 2))
    >>> found = plan(model, CompressionConfig(bits=4.5), everything=False)
    >>> found.chosen.num_bytes <= 2000 * 32 * 4.5 / 8
    True
    """
    if max_drop is not None and (metric is None or not max_drop >= 0):
        raise InputError(f"max_drop={max_drop} must be at least 0 and needs a metric.")
    tables = find_tables(model, config.modules)
    if len(tables) > 1:
        raise InputError(
            f"the model has {len(tables)} tables: {[table.name for table in tables]}; plan one of "
            "them with modules=[...]."
        )
    return _Planner(model, tables[0], config, metric, on_start or (lambda _: None)).plan(
        max_drop, n_confirm, everything
    )


class _Planner:
    def __init__(
        self,
        model: nn.Module,
        table: Table,
        config: CompressionConfig,
        metric: Metric | None,
        announce: Callable[[str], None],
    ) -> None:
        self.model, self.weight, self.announce = model, table.weight, announce
        self.measure = metric
        self.target = config.code_bytes(table.weight.numel())
        kept = (*config.exact_ids, *table.zero_ids)
        self.candidates = Candidates(table.weight, replace(config, exact_ids=kept))
        self.dense = None if metric is None else self._measured("the dense model")

    def plan(self, max_drop: float | None, n_confirm: int, everything: bool) -> Plan:
        rows: list[Row] = []
        for candidate in self.candidates.references():
            self.announce(candidate.name)
            rows.append(self._row(candidate, None))
        if max_drop is not None:
            self.target = self._smallest(max_drop, rows)
        chosen, best = self._choose(self.target, n_confirm, everything, rows)
        self._add_above(rows, everything)
        config = best.config
        if config is None:
            raise InputError(f"{best.name} cannot be saved.")
        ordered = tuple(sorted(rows, key=lambda row: (row.num_bytes, row.error)))
        verdict = _verdict(chosen, ordered, self.target, self.dense)
        return Plan(
            config=config, chosen=chosen, rows=ordered, dense_metric=self.dense, verdict=verdict
        )

    def _add_above(self, rows: list[Row], everything: bool) -> None:
        """Add the next larger plain integers, for comparison."""
        above = self.candidates.plain_above(self.target)
        if above is not None:
            tried = everything and self.measure is not None
            rows.append(self._row(above, self._score(above) if tried else None))

    def _smallest(self, max_drop: float, rows: list[Row]) -> int:
        """Return the smallest size whose drop is small enough, by bisection of the rates."""
        n = self.weight.numel()
        sizes = sorted({int(rate * n / 8) for rate in RATES if int(rate * n / 8) <= self.target})
        low, high, found = 0, len(sizes) - 1, None
        while low <= high:
            middle = (low + high) // 2
            try:
                row, _ = self._choose(sizes[middle], 2, False, rows)
                good = row.metric is not None and self.dense is not None
                good = good and row.metric >= self.dense - max_drop  # type: ignore[operator]
            except BudgetError:
                good = False
            if good:
                found, high = sizes[middle], middle - 1
            else:
                low = middle + 1
        if found is None:
            raise BudgetError(
                f"no size up to {self.target:,} bytes keeps the metric within {max_drop} of the "
                f"dense model's {self.dense}; allow more bytes or a larger drop."
            )
        return found

    def _choose(
        self, target: int, n_confirm: int, everything: bool, rows: list[Row]
    ) -> tuple[Row, Candidate]:
        found: list[Candidate] = []
        self.announce(f"{target:,} bytes")
        for candidate in self.candidates.at(target, everything=everything):
            self.announce(f"{target:,} bytes: {candidate.name}")
            found.append(candidate)
        savable = sorted((c for c in found if c.config is not None), key=lambda c: c.error)
        if not savable:
            raise BudgetError(self._too_small(target))
        scores: dict[int, float] = {}
        if self.measure is not None:
            plain = [c for c in savable[n_confirm:] if everything and c.name.endswith(FITTED)]
            tried = [*savable[:n_confirm], *plain]
            for candidate in tried:
                scores[id(candidate)] = self._score(candidate)
            best = max(tried, key=lambda c: scores[id(c)])
        else:
            best = savable[0]
        rows += [self._row(c, scores.get(id(c))) for c in found]
        return self._row(best, scores.get(id(best))), best

    def _too_small(self, target: int) -> str:
        """Say how small a table can get: what the plainest form needs."""
        config = replace(self.candidates.config, method="codes", target_bytes=1, bits=None)
        from kflats.quantization.search import fit_codes

        try:
            fit_codes(self.candidates.weight, config, self.candidates.exact_ids)
        except BudgetError as error:
            return f"{target:,} bytes are too few for every method: {error}"
        raise AssertionError("a table of one byte")

    def _score(self, candidate: Candidate) -> float:
        with standing_in(self.weight, candidate.table):
            return self._measured(candidate.name)

    def _measured(self, what: str) -> float:
        self.announce(f"metric of {what}")
        if self.measure is None:
            raise InputError("there is no metric.")
        value: Any = self.measure(self.model)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"the metric of {what} is {value!r}; it must be a finite number.")
        return float(value)

    def _row(self, candidate: Candidate, metric: float | None) -> Row:
        return Row(
            name=candidate.name,
            num_bytes=candidate.num_bytes,
            bits=8 * candidate.num_bytes / self.weight.numel(),
            error=candidate.error,
            metric=metric,
            can_be_saved=candidate.config is not None,
        )


@contextmanager
def standing_in(weight: Tensor, table: Tensor) -> Iterator[None]:
    """Put other values into a table while the block runs."""
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.copy_(table)
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def _verdict(chosen: Row, rows: tuple[Row, ...], target: int, dense: float | None) -> str:
    what = f"{chosen.name}: {chosen.num_bytes:,} bytes, {chosen.bits:.2f} bits per parameter"
    if chosen.metric is not None and dense is not None:
        what += f", metric {chosen.metric:.2f} (dense {dense:.2f})"
    near = [row for row in rows if 0.9 * target <= row.num_bytes <= target]
    outside = [row.name for row in near if row.error < chosen.error and not row.can_be_saved]
    if outside:
        what += f"; {', '.join(outside)} has less error at this size, but kflats cannot save it"
    plain = [row for row in rows if row.name.endswith(FITTED)]
    fits = [row for row in plain if row.num_bytes <= target]
    best = max(fits, key=_size, default=None)
    above = min((row for row in plain if row.num_bytes > target), key=_size, default=None)
    if best is None:
        what += "; plain integers do not get this small"
    elif best.name == chosen.name:
        what += "; plain integers are best here, so that is what is saved"
        best = None
    beside = [_beside(row, chosen, target) for row in (best, above) if row is not None]
    return f"{what}; plain integers next to it: {'; '.join(beside)}." if beside else f"{what}."


def _size(row: Row) -> tuple[int, bool]:
    return row.num_bytes, row.metric is not None


def _beside(row: Row, chosen: Row, target: int) -> str:
    """Say how plain integers of another size compare."""
    share = row.num_bytes / target
    size = f"{1 - share:.1%} below" if share <= 1 else f"{share - 1:.1%} above"
    error = f"{row.error / chosen.error:.1f} times its error" if chosen.error else "more error"
    metric = "" if row.metric is None else f", metric {row.metric:.2f}"
    return (
        f"{row.name.removesuffix(FITTED)} with {row.num_bytes:,} bytes, {size} the limit, "
        f"has {error}{metric}"
    )
