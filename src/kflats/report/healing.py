"""HealingReport: what healing has done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class HealingReport:
    """What healing has done.

    Attributes
    ----------
    loss_before, loss_after : float
        Distance from the teacher on texts that were held out, as the model is saved; see
        :class:`kflats.training.distillation.Student`. If training has not made it less, the model
        is left as it was before.
    steps : int
        Batches that were trained on.
    pieces : int
        Different pieces of text to train on.
    parts : {'table', 'all'}
        What was trained.
    seconds : float
        Duration.
    """

    loss_before: float
    loss_after: float
    steps: int
    pieces: int
    parts: str
    seconds: float

    @property
    def is_better(self) -> bool:
        """Whether the model has changed, to one that is nearer to the teacher."""
        return self.loss_after < self.loss_before

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        text = (
            f"distance from the teacher {self.loss_before:.5f} -> {self.loss_after:.5f}, "
            f"{self.steps} steps on {self.pieces} pieces of text, {self.seconds:.0f} s"
        )
        return text if self.is_better else f"{text}; no better, so the model is left as it was"
