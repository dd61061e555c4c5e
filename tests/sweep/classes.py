"""Which model classes there are: every one that a family of transformers exports."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any

SKIPPED = {"auto", "deprecated"}
SKIP = "KFLATS_SWEEP_SKIP"
"""Environment variable: a pattern of names of classes to leave out."""


def families() -> list[str]:
    """Return the names of all families, which are the folders of ``transformers.models``."""
    return sorted(path.name for path in _root().iterdir() if _modeling_files(path.name))


def class_names(family: str) -> list[str]:
    """Return ``module:class`` of what the modeling files of a family export; imports nothing."""
    found = []
    for path in _modeling_files(family):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and _target(node) == "__all__":
                found += [f"{family}.{path.stem}:{name}" for name in ast.literal_eval(node.value)]
    skip = os.environ.get(SKIP)
    kept = [name for name in found if not name.endswith(("PreTrainedModel", "PretrainedModel"))]
    return [name for name in kept if not (skip and re.search(skip, name))]


def model_class(name: str) -> Any:
    """Return the class of ``module:class``, or None if it is no model with a config."""
    from transformers import PreTrainedModel

    module, _, kind = name.partition(":")
    found: Any = getattr(importlib.import_module(f"transformers.models.{module}"), kind)
    is_model = inspect.isclass(found) and issubclass(found, PreTrainedModel)
    return found if is_model and found.config_class is not None else None


def _root() -> Path:
    from importlib.util import find_spec

    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise RuntimeError("transformers is not installed")
    return Path(spec.origin).parent / "models"


def _modeling_files(family: str) -> list[Path]:
    return [] if family in SKIPPED else sorted((_root() / family).glob("modeling_*.py"))


def _target(node: ast.Assign) -> str | None:
    first = node.targets[0]
    return first.id if isinstance(first, ast.Name) else None
