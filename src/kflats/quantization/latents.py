"""Latents: a table in packed codes as float numbers that can be trained, and back to codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kflats.quantization.build import round_directions
from kflats.quantization.cells import start_in_cells
from kflats.quantization.codes import Codes, records_of
from kflats.quantization.records import GAIN_STEPS, Books, encode, level_runs
from kflats.quantization.shape import CodeShape


@dataclass(frozen=True, eq=False)
class Latents:
    """The numbers of a table in packed codes, in relative units.

    Attributes
    ----------
    shape : CodeShape
        Sizes of the packed table.
    latent : Tensor, float32, flat
        Coefficients divided by the gain of their row, group by group; a code is the nearest level.
    log_gains : Tensor, float32, flat
        Logarithms of the gains of all rows that have coefficients, group by group.
    bases : Tensor of shape (sum of shape.directions, embedding_dim), float32
        Means and directions, each divided by its unit.
    columns : Tensor, float32, flat, or None
        Scales of the columns of every identity, divided by their units.
    levels : Tensor, float32, flat
        The levels of each width, ascending.
    exact, labels : Tensor or None
        As in :class:`Codes`.
    units : Tensor, float32
        Root mean square of each row of the bases, and then each column scale, before training.
    ends : Tensor of shape (2,)
        Logarithm of the smallest gain and its step, before training.
    """

    shape: CodeShape
    latent: Tensor
    log_gains: Tensor
    bases: Tensor
    columns: Tensor | None
    levels: Tensor
    exact: Tensor | None
    labels: Tensor | None
    units: Tensor
    ends: Tensor


@torch.no_grad()
def latents_of(codes: Codes, table: Tensor | None = None) -> Latents:
    """Return the numbers of a table in packed codes, without gradient; the codes are left alone.

    Coefficients are the levels themselves. With the ``table`` before compression, of shape
    (num_embeddings, embedding_dim), they are where its rows lie in the cells of these levels.
    """
    shape, books = codes.shape, Books(codes.books, codes.shape.widths)
    empty = codes.scales.new_zeros(0, dtype=torch.float32)
    latents, gains = [empty], [empty]
    for group, (count, runs) in enumerate(zip(shape.counts, shape.runs, strict=True)):
        if runs and count:
            records = records_of(codes, group)
            found = torch.cat([levels for _, levels in level_runs(records, runs, books)], 1)
            logs = books.gains(records[:, 0]).log()
            if table is not None:
                found = start_in_cells(found, logs, codes, group, table)
            latents.append(found.reshape(-1))
            gains.append(logs)
    stored = len(codes.bases)
    scales = codes.scales.float()
    bases = codes.bases.float() * scales[:stored, None]
    units = bases.square().mean(1).sqrt()
    units = torch.where(units > 0, units, torch.ones_like(units))
    columns = scales[stored:]
    columns = torch.where(columns > 0, columns, torch.ones_like(columns))
    return Latents(
        shape=shape,
        latent=torch.cat(latents),
        log_gains=torch.cat(gains),
        bases=bases / units[:, None],
        columns=scales[stored:] / columns if len(columns) else None,
        levels=books.numbers[2:].clone(),
        exact=None if codes.exact is None else codes.exact.detach(),
        labels=codes.labels,
        units=torch.cat([units, columns]),
        ends=codes.books[:2].clone(),
    )


def codes_of(latents: Latents, dtype: torch.dtype) -> Codes:
    """Return the packed codes of the numbers, with scales and books in ``dtype``.

    Every code is the nearest level, every gain the nearest of the logarithmic range (which grows
    where training has left it), and bases are rounded to as many bits as before.
    """
    shape = latents.shape
    numbers = torch.cat([_ends(latents), _sorted(latents)]).to(dtype)
    books = Books(numbers, shape.widths)
    bases, scales = round_directions(
        latents.bases * latents.units[: len(latents.bases), None], shape.basis_bits, dtype
    )
    if latents.columns is not None:
        columns = latents.columns * latents.units[len(latents.bases) :]
        scales = torch.cat([scales, columns.to(dtype)])
    return Codes(
        shape=shape,
        coefficients=_records(latents, books),
        labels=latents.labels,
        bases=bases,
        scales=scales,
        books=numbers,
        exact=latents.exact,
    )


def _records(latents: Latents, books: Books) -> Tensor:
    shape = latents.shape
    parts = [torch.zeros(0, dtype=torch.uint8, device=latents.units.device)]
    first_latent = first_gain = 0
    for count, runs in zip(shape.counts, shape.runs, strict=True):
        width = sum(number for _, number in runs)
        if not (count and width):
            continue
        own = latents.latent[first_latent : first_latent + count * width].view(count, width)
        gains = latents.log_gains[first_gain : first_gain + count].exp()
        first_latent, first_gain = first_latent + count * width, first_gain + count
        # Codes follow the latent numbers whatever the rounding of the gain.
        stored = books.gains(books.gain_codes(gains))
        parts.append(encode(own * stored[:, None], gains, runs, books).reshape(-1))
    return torch.cat(parts)


def _ends(latents: Latents) -> Tensor:
    """Return the smallest logarithm of a gain and the step, as before if all gains still fit."""
    ends = latents.ends.float()
    if not len(latents.log_gains):
        return ends
    low = torch.minimum(ends[0], latents.log_gains.min())
    high = torch.maximum(ends[0] + GAIN_STEPS * ends[1], latents.log_gains.max())
    if torch.equal(low, ends[0]) and torch.equal(high, ends[0] + GAIN_STEPS * ends[1]):
        return ends
    return torch.stack([low, (high - low) / GAIN_STEPS])


def _sorted(latents: Latents) -> Tensor:
    parts = latents.levels.split([2**width for width in latents.shape.widths])
    return torch.cat([latents.levels.new_zeros(0), *(part.sort().values for part in parts)])
