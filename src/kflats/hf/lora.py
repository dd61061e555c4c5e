"""LoRA of PEFT on compressed layers.

PEFT puts LoRA on classes that it knows. Layers beside the compressed ones need nothing from here;
:func:`lora_config` teaches a config to put adapters on the compressed layers themselves.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from peft import LoraConfig
from peft.tuners.lora import layer as lora

from kflats.errors import UnsupportedModelError
from kflats.layers import (
    FactorizedEmbedding,
    FactorizedLinear,
    QuantizedEmbedding,
    QuantizedLinear,
)

Config = TypeVar("Config", bound=LoraConfig)


def lora_config(config: Config) -> Config:
    """Let a config put LoRA on compressed embeddings and output heads too.

    The adapter adds a low-rank table to the factors or packed codes, which stay as they are. It
    cannot be merged into them: their shape has no room for it.

    Parameters
    ----------
    config : peft.LoraConfig
        Its ``target_modules`` may name factorised layers. Changed in place.

    Returns
    -------
    peft.LoraConfig
        The same object.

    Examples
    --------
    >>> from peft import LoraConfig
    >>> config = lora_config(LoraConfig(r=4, target_modules=["word_embeddings"]))
    """
    config._register_custom_module(
        {
            FactorizedEmbedding: LoraFactorizedEmbedding,
            FactorizedLinear: LoraFactorizedLinear,
            QuantizedEmbedding: LoraFactorizedEmbedding,
            QuantizedLinear: LoraFactorizedLinear,
        }
    )
    return config


class _Unmergeable:
    def merge(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: the sum with an adapter is no table of the same factors."""
        raise UnsupportedModelError(
            "an adapter cannot be merged into a factorised table: keep it beside the model, or "
            "call kflats.to_dense_(model) before adding it."
        )


class LoraFactorizedEmbedding(_Unmergeable, lora.Embedding):
    """The rows of a compressed embedding plus those of a low-rank table."""

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """Add an adapter of the size of the table."""
        base: Any = self.get_base_layer()
        self.in_features, self.out_features = base.num_embeddings, base.embedding_dim
        super().update_layer(*args, **kwargs)


class LoraFactorizedLinear(_Unmergeable, lora.Linear):
    """The logits of a compressed head plus those of a low-rank table."""
