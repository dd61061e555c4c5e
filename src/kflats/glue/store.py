"""Results on disk: one JSON file per run, written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kflats.errors import CheckpointError, InputError
from kflats.files import whole_file
from kflats.glue.settings import Cell

RUNS = "runs"
SETTINGS = "sweep.json"
DENSE = "dense"


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object, see :func:`write_text`."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a file is never half there.

    Raises
    ------
    CheckpointError
        If the place cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return a result; CheckpointError if the file holds none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no result: {error}") from error
    if not isinstance(data, dict) or "cell" not in data:
        raise CheckpointError(f"{path} is no result of kflats glue run.")
    return data


def path_of(results: Path, cell: Cell) -> Path:
    """Return the file of a run."""
    return results / RUNS / f"{cell.name}.json"


def is_done(results: Path, cell: Cell, digest: str) -> bool:
    """Return whether a run has finished with these settings; failed runs are tried again.

    Raises
    ------
    InputError
        If it has finished with other settings or other data.
    """
    path = path_of(results, cell)
    if not path.is_file():
        return False
    found = read_json(path)
    if found.get("status") != "done":
        return False
    if found.get("digest") != digest:
        raise other_settings(path)
    return True


def other_settings(path: Path) -> InputError:
    """Return the error for a result that does not belong to a sweep."""
    return InputError(
        f"{path} was made with other settings, data or model: give another results folder, or "
        "remove it."
    )


def write_result(results: Path, cell: Cell, digest: str, result: dict[str, Any]) -> None:
    """Write the result of a run, done or failed."""
    write_json(path_of(results, cell), {"cell": asdict(cell), "digest": digest, **result})


def check_alike(found: list[dict[str, Any]]) -> None:
    """Check that results can stand in one table.

    Raises
    ------
    InputError
        If they are of several models, or those of a task of several settings, data or precisions.
    """
    seen: dict[tuple[str, ...], Any] = {}
    for each in found:
        task = each["cell"]["task"]
        values: dict[tuple[str, ...], Any] = {("model",): each["model"]}
        for key in ("training", "data", "mixed_precision"):
            if each["status"] == "done" and key in each:
                value = each[key]["sha256"] if key == "data" else each[key]
                values[key, task] = value
        for place, value in values.items():
            if seen.setdefault(place, value) != value:
                raise InputError(
                    f"results of several kinds are in one folder: {' of '.join(place)} is once "
                    f"{seen[place]!r} and once {value!r}; keep each in a folder of its own."
                )


def read_results(results: Path) -> list[dict[str, Any]]:
    """Return all results of a folder in the order of their names.

    Raises
    ------
    InputError
        If there are none.
    """
    folder = results / RUNS if (results / RUNS).is_dir() else results
    paths = sorted(path for path in folder.glob("*.json") if path.name != SETTINGS)
    found = [read_json(path) for path in paths]
    if not found:
        raise InputError(f"{results} holds no results: give a folder that kflats glue run wrote.")
    return found
