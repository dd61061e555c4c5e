"""TOML files of sweeps: those of the user, and those that come with kflats."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from kflats.errors import InputError
from kflats.glue.names import nearest


def find(path: str | Path) -> Path:
    """Return a TOML file, or the one of this name that comes with kflats."""
    given = Path(path).expanduser()
    if given.is_file():
        return given
    found = shipped(given.name.removesuffix(".toml"))
    if given.name != str(path) or not found.is_file():
        names = [each.stem for each in found.parent.glob("*.toml") if each.stem != "defaults"]
        raise InputError(f"{path} is no file, and no config of kflats; {nearest(str(path), names)}")
    return found


def shipped(name: str) -> Path:
    """Return where a config of kflats lies, whether there is one or not."""
    return Path(str(files("kflats.glue"))) / "configs" / f"{name}.toml"


def read(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds; InputError if it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read as TOML: {error}") from error


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` in it, table by table."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = merged(old or {}, value) if both else value
    return result
