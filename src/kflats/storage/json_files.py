"""Reading JSON that strangers wrote: an error that names the file, whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kflats.errors import CheckpointError

_DEEPEST = 100


def read_any(path: Path) -> Any:
    """Return the JSON in a file.

    Raises
    ------
    CheckpointError
        If it cannot be read, is no JSON, or is nested deeper than any description is.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise CheckpointError(_too_deep(str(path))) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from error
    check_depth(data, str(path))
    return data


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; CheckpointError if it holds none."""
    data = read_any(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return data


def check_depth(data: Any, where: str) -> None:
    """Raise CheckpointError if JSON is nested so deep that working with it might overflow."""
    level, depth = [data], 0
    while level:
        nested = [each for each in level if isinstance(each, dict | list)]
        level = [v for each in nested for v in (each.values() if type(each) is dict else each)]
        depth += 1
        if depth > _DEEPEST:
            raise CheckpointError(_too_deep(where))


def _too_deep(where: str) -> str:
    return f"{where} is nested more than {_DEEPEST} levels deep: no description of a model is."
