"""LoRA of PEFT on factorised layers.

PEFT puts LoRA on classes that it knows. Layers beside the factorised ones need nothing from here;
:func:`lora_config` teaches a config to put adapters on the factorised layers themselves.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from peft import LoraConfig
from peft.tuners.lora import layer as lora

from kflats.errors import UnsupportedModelError
from kflats.layers import FactorizedEmbedding, FactorizedLinear

Config = TypeVar("Config", bound=LoraConfig)


def lora_config(config: Config) -> Config:
    """Let a config put LoRA on :class:`FactorizedEmbedding` and :class:`FactorizedLinear` too.

    The adapter adds a low-rank table to the factorised one, which stays as it is. It cannot be
    merged into the factors: their shape has no room for it.

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
        {FactorizedEmbedding: LoraFactorizedEmbedding, FactorizedLinear: LoraFactorizedLinear}
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
    """The rows of a factorised embedding plus those of a low-rank table."""

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """Add an adapter of the size of the table."""
        base: Any = self.get_base_layer()
        self.in_features, self.out_features = base.num_embeddings, base.embedding_dim
        super().update_layer(*args, **kwargs)


class LoraFactorizedLinear(_Unmergeable, lora.Linear):
    """The logits of a factorised head plus those of a low-rank table."""
