"""Pieces of text as tokens, and the batches made of them."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from kflats.errors import InputError

Features = dict[str, Tensor]
Pieces = list[dict[str, list[int]]]
_HELD_OUT = 256


class Batches:
    """Tokens of texts, and the batches made of them.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        One without padding token gets its end of text for that, in a copy.
    max_length : int
        Most tokens of a piece. Longer texts become several pieces (with a tokenizer that is not
        one of the fast ones they are cut).
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        if tokenizer.pad_token is None:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer, self.max_length = tokenizer, max_length

    def pieces(self, texts: Iterable[str]) -> Pieces:
        """Return the tokens of all pieces that hold a known token.

        Raises
        ------
        InputError
            If there is none.
        """
        kept = [text for text in texts if text.strip()]
        special = set(self.tokenizer.all_special_ids)
        found = self._tokens(kept) if kept else []
        found = [piece for piece in found if not special.issuperset(piece["input_ids"])]
        if not found:
            raise InputError(
                f"{len(kept)} texts hold no token that the model knows; give text in its language."
            )
        return found

    def _tokens(self, texts: list[str]) -> Pieces:
        encoded = self.tokenizer(
            texts,
            truncation=True,
            max_length=self.max_length,
            return_overflowing_tokens=self.tokenizer.is_fast,
            return_attention_mask=True,
        )
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        columns = (encoded[name] for name in names)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def __call__(self, pieces: Pieces) -> dict[str, Features]:
        """Return one padded batch under the name that :meth:`Student.forward` takes."""
        return {"features": dict(self.tokenizer.pad(pieces, return_tensors="pt"))}


def split(pieces: Pieces, seed: int) -> tuple[Pieces, Pieces]:
    """Return what to train on and what to hold out; a single piece serves for both."""
    shuffled = list(pieces)
    random.Random(seed).shuffle(shuffled)
    held = min(_HELD_OUT, max(1, len(shuffled) // 10))
    return shuffled[held:] or shuffled, shuffled[:held]
