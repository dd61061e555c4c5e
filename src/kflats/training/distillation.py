"""Student: a compressed model and its dense teacher as one module whose output is a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kflats.errors import InputError, UnsupportedModelError
from kflats.training.batches import Features

_BETWEEN = 30.0
DIVERGED = (
    "healing diverged: the loss is not finite. The model is as it was; use a smaller learning_rate."
)


class Student(nn.Module):
    """A model, its teacher, and how far their outputs are apart.

    Sentence embeddings are compared by one minus their cosine, and, since they are there to be
    compared with each other, by 30 times the mean squared error of the cosines within the batch;
    logits by the Kullback-Leibler divergence from those of the teacher; hidden states, and heads
    that give one score, by their squared error relative to the teacher's squared norm; logits and
    hidden states only where there is text.

    Parameters
    ----------
    model, teacher : nn.Module
        Of sentence-transformers, or of transformers without a decoder of its own input. Both are
        kept in evaluation mode: dropout would add noise that the teacher does not have.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.model, self.teacher = model, teacher
        for each in (model, teacher):
            if getattr(getattr(each, "config", None), "is_encoder_decoder", False):
                raise UnsupportedModelError(
                    f"{type(each).__name__} needs texts for its decoder too; heal its encoder, or "
                    "train it on your task."
                )

    def train(self, mode: bool = True) -> Student:  # noqa: ARG002
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Return the loss of a batch of tokens as ``{"loss": loss}``.

        Raises
        ------
        InputError
            If it is not finite, or the outputs of the two differ in shape.
        """
        with torch.no_grad():
            wanted, _ = _output(self.teacher, features)
        got, kind = _output(self.model, features)
        if got.shape != wanted.shape:
            raise InputError(
                f"the model gives {tuple(got.shape)} and its teacher {tuple(wanted.shape)}; the "
                "teacher must be the model before compression."
            )
        mask = features["attention_mask"].bool()
        loss = _LOSSES[kind](got.float(), wanted.float(), mask)
        if not bool(loss.isfinite()):
            raise InputError(DIVERGED)
        return {"loss": loss}


def _output(model: Any, features: Features) -> tuple[Tensor, str]:
    """Return what a model is compared by, and of which kind it is."""
    if hasattr(model, "encode"):
        return model(dict(features))["sentence_embedding"], "sentence"
    output = model(**features)
    for kind in ("logits", "last_hidden_state"):
        found = getattr(output, kind, None)
        if isinstance(found, Tensor):
            return found, kind
    raise UnsupportedModelError(
        f"{type(model).__name__} gives neither sentence embeddings, nor logits, nor "
        "last_hidden_state; models of sentence-transformers and transformers do."
    )


def _sentence_loss(got: Tensor, wanted: Tensor, _: Tensor) -> Tensor:
    got, wanted = (nn.functional.normalize(each, dim=1) for each in (got, wanted))
    pairs = max(1, len(got) * (len(got) - 1))
    between = (got @ got.T - wanted @ wanted.T).square().sum() / pairs
    return (1 - (got * wanted).sum(1)).mean() + _BETWEEN * between


def _logit_loss(got: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    if got.dim() == 3:
        got, wanted = got[mask], wanted[mask]
    if got.shape[-1] == 1:  # a score, not a distribution
        return _relative_error(got, wanted)
    logs = (got.log_softmax(-1), wanted.log_softmax(-1))
    return nn.functional.kl_div(*logs, reduction="batchmean", log_target=True)


def _hidden_loss(got: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    return _relative_error(got[mask], wanted[mask])


def _relative_error(got: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared error relative to the squared norm."""
    return (got - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30)


_LOSSES = {"sentence": _sentence_loss, "logits": _logit_loss, "last_hidden_state": _hidden_loss}
