"""The names of tables in the files of a checkpoint and in the model that is loaded from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, apply_renamings

from kflats.hf.unpack import Unpack
from kflats.layers.stored import FILE_NAMES
from kflats.storage.locate import Sized, locate_tensors
from kflats.storage.manifest import Manifest, TableSpec

Conversion: TypeAlias = WeightRenaming | WeightConverter


class FileNames:
    """What transformers makes of the names in files while it loads a model.

    Parameters
    ----------
    model : PreTrainedModel
        A skeleton.
    found : mapping
        The tensors in the files by name.
    """

    def __init__(self, model: Any, found: Mapping[str, Sized]) -> None:
        self.found = found
        self._prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
        found = get_model_conversion_mapping(model)
        self._renamings = [each for each in found if isinstance(each, WeightRenaming)]

    def rename(self, key: str) -> str:
        """Return the name in memory, up to the prefix of the base model."""
        name: str = apply_renamings(key, self._renamings)
        return name

    def loaded(self) -> set[str]:
        """Return the names in memory, with the prefix of the base model and without it."""
        names = {self.rename(key) for key in self.found}
        bare = {name.removeprefix(self._prefix) for name in names}
        return names | bare | {self._prefix + name for name in bare}

    def candidates(self, name: str) -> list[str]:
        """Return the names that a module of a checkpoint may have in this model."""
        bare = name.removeprefix(self._prefix)
        return list(dict.fromkeys([name, self._prefix + name, bare]))

    def locate(self, manifest: Manifest) -> dict[str, str]:
        """Return the names in the files of the tensors of tables."""
        return locate_tensors(manifest, self.found, self.rename)

    def conversions(
        self, manifest: Manifest, located: dict[str, str], owners: dict[str, str]
    ) -> list[Conversion]:
        """Return what leads from the names in the files to those of the layers.

        Parameters
        ----------
        manifest : Manifest
            What the files hold.
        located : dict
            What :meth:`locate` returns.
        owners : dict
            For every table that this model has, the module that owns it.
        """
        found: list[Conversion] = []
        for table, owner in owners.items():
            spec = manifest.tables[table]
            for key, leaf in FILE_NAMES.items():
                stored = located.get(f"{table}.{leaf}")
                if stored is None:
                    continue
                source = f"^{re.escape(self.rename(stored))}$"
                found.append(_conversion(source, owner, key, spec))
        return found


def renamings(manifest: Manifest) -> list[Conversion]:
    """Return the conversions from the names in files to those in memory where both are the same.

    transformers applies them backwards when it saves. Tensors that are entropy-coded in the file
    are unpacked as well.
    """
    found: list[Conversion] = []
    for name, spec in manifest.tables.items():
        for key, leaf in FILE_NAMES.items():
            found.append(_conversion(f"{name}.{leaf}", name, key, spec))
    return found


def _conversion(source: str, module: str, key: str, spec: TableSpec) -> Conversion:
    """Return what leads from a name in the files to a tensor of a layer."""
    target = f"{module}.{key}"
    if key == "coefficients" and spec.is_entropy_coded:
        return WeightConverter(source, target, [Unpack(spec)])
    return WeightRenaming(source, target)
