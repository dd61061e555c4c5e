"""The class that a config.json names: one of the models of transformers, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kflats.errors import CheckpointError
from kflats.storage.json_files import read_json
from kflats.storage.manifest import Manifest


def model_class(folder: Path) -> Any:
    """Return the class that a folder was saved from, ``AutoModel`` if it does not say.

    Raises
    ------
    CheckpointError
        If transformers does not have it, it is no model, or one for another kind of config.
    """
    import transformers

    where, config = folder / "config.json", read_json(folder / "config.json")
    name = architecture_name(folder)
    if name is None:
        return transformers.AutoModel
    found = class_named(name, str(where))
    if found is None:
        raise CheckpointError(
            f"{where} asks for the architecture {name!r}, which transformers "
            f"{transformers.__version__} does not have: install the version that does."
        )
    of_class = getattr(found.config_class, "model_type", None)
    said = config.get("model_type")
    if of_class and said is not None and said != of_class:
        raise CheckpointError(
            f"{where} says model_type={said!r}, but its architecture {name!r} is a model of the "
            f"type {of_class!r}: the two do not belong together."
        )
    return found


def class_named(name: str, where: str) -> Any:
    """Return a model class of transformers, None if it has nothing of that name.

    Raises
    ------
    CheckpointError
        Naming ``where``, if transformers has something else of that name.
    """
    import transformers

    found = getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    if found is not None and not is_model:
        raise CheckpointError(
            f"{where} asks for the architecture {name!r}, which is no model class of transformers "
            "(a PreTrainedModel)."
        )
    return found


def architecture_name(folder: Path) -> str | None:
    """Return the first of the ``architectures`` in config.json, None if there is none.

    Raises
    ------
    CheckpointError
        If they are no list of names.
    """
    names = read_json(folder / "config.json").get("architectures")
    if names is None or names == []:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{folder / 'config.json'}: architectures must be a list of class names, got "
            f"{str(names)[:80]}."
        )
    return str(names[0])


def load_saved(found: Any, folder: Path, manifest: Manifest, options: dict[str, Any]) -> Any:
    """Load a folder with the class that it was saved from.

    Old folders have no checksums to tell that all tensors are there: transformers says which it
    has missed.

    Raises
    ------
    CheckpointError
        If a tensor of the model is not in an old folder.
    """
    wanted = options.pop("output_loading_info", False)
    model, info = found.from_pretrained(folder, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing and manifest.checksums is None:
        raise CheckpointError(
            f"{folder} has no tensor {missing[0]!r}, which {type(model).__name__} needs; "
            f"{len(missing)} are missing."
        )
    return (model, info) if wanted else model
