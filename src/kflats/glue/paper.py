"""What the paper reports (abstract and section 4), for the table beside one's own figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One figure of the paper: the mean drop over the nine tasks in per cent.

    ``bound`` is '<' where the paper gives an upper bound.
    """

    model: str
    method: str
    compression: float
    drop: float
    bound: str = ""


REPORTED = (
    Reported(model="distilbert-base-uncased", method="messi", compression=0.40, drop=0.5),
    Reported(model="distilbert-base-uncased", method="svd", compression=0.40, drop=2.8),
    Reported(model="roberta-base", method="messi", compression=0.43, drop=0.8, bound="<"),
    Reported(model="roberta-base", method="svd", compression=0.40, drop=3.0),
)
"""After two epochs of fine-tuning, without seeds or spread."""


def reported_for(model: str) -> list[Reported]:
    """Return the figures for a model of the paper; empty for others."""
    return [each for each in REPORTED if each.model == model.rpartition("/")[2]]
