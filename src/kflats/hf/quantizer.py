"""KFlatsQuantizer: what transformers calls while it loads a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer

from kflats.errors import CheckpointError, InputError
from kflats.hf.config import METHOD, KFlatsConfig
from kflats.hf.describe import describe_, index_tables
from kflats.hf.names import FileNames, renamings
from kflats.hf.patches import install
from kflats.hf.skeleton import insert_layers
from kflats.hf.unpack import check_unpacked
from kflats.storage.check import check_files


class KFlatsQuantizer(HfQuantizer):
    """Puts factorised layers into a skeleton, or compresses a dense model after loading."""

    requires_calibration = False

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        config = self.quantization_config
        if not self.pre_quantized:
            if config.settings is None:
                raise InputError(
                    "KFlatsConfig() has no size: give one, such as KFlatsConfig(compression=0.4)."
                )
            return
        if config.manifest is None:
            raise CheckpointError(
                "the quantization_config of config.json describes no factorised layers."
            )
        files = [Path(file) for file in checkpoint_files or ()]
        found = {}
        if files:
            found = check_files(config.manifest, files, files[0].parent, "config.json")
        names = FileNames(model, {header.name: header for header in found.values()})
        owners = insert_layers(model, config.manifest, names)
        if files:
            located = names.locate(config.manifest)
            self.conversions = names.conversions(config.manifest, located, owners)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        settings = self.quantization_config.settings
        # The factors train, cast and save like any parameters, and transformers restricts what it
        # believes to be quantised (Trainer, .half(), save_pretrained(state_dict=...)).
        model.is_quantized = False  # type: ignore[assignment]
        for owner, name in (
            (model, "hf_quantizer"),
            (model, "quantization_method"),
            (model.config, "_is_quantized"),
        ):
            if name in vars(owner):
                delattr(owner, name)
        if settings is not None:
            from kflats.compress import compress_

            compress_(model, settings)
            return model
        check_unpacked(model)
        index_tables(model)
        if self.quantization_config.manifest.blobs:
            describe_(model)  # in memory and when it is saved the tables are packed
        return model

    def get_weight_conversions(self) -> list[WeightRenaming | WeightConverter]:
        """Return the renamings from file names to parameter names."""
        manifest = self.quantization_config.manifest
        if manifest is None:
            return []
        return getattr(self, "conversions", None) or renamings(manifest)

    def is_serializable(self) -> bool:
        """Factors are saved like any parameters."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Factors train."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Factors train."""
        return True


def register() -> None:
    """Make transformers load and save checkpoints with factorised tables; may be repeated.

    ``import kflats`` arranges for it. Besides filling the two registries of transformers, it wraps
    the methods of ``PreTrainedModel`` that only know dense tables, see :mod:`kflats.hf.patches`.
    """
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(KFlatsConfig)
        register_quantizer(METHOD)(KFlatsQuantizer)
    install()
