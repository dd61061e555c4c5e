"""Finding the tensors of a table in a file that may call them by other names.

transformers gives some modules other names in its files than they have in memory: the head of
GPT-NeoX is ``lm_head`` here and ``embed_out`` there. A description has the names in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from kflats.layers.stored import FILE_NAMES
from kflats.storage.manifest import Manifest

Value = TypeVar("Value")
_MARK = ".kflats_"


def locate_tables(
    manifest: Manifest, keys: Collection[str], rename: Callable[[str], str] | None = None
) -> dict[str, str]:
    """Return, for every table whose tensors are found, the name of its module in the files.

    Parameters
    ----------
    manifest : Manifest
        What the files hold.
    keys : collection of str
        Names of the tensors in the files.
    rename : callable, optional
        Gives the name in memory of a tensor in a file.

    Notes
    -----
    A table lies under its own name, or under one that ``rename`` turns into it. Without such a
    name it is the one whose last part is the same, or else the only one left that has just
    the tensors it must have.
    """
    leaves = _leaves(manifest)
    groups = _groups(keys, leaves)
    found: dict[str, str] = {}

    def take(name: str, wanted: Callable[[str], bool]) -> None:
        alike = [each for each in groups if each not in found.values() and wanted(each)]
        if name not in found and len(alike) == 1:
            found[name] = alike[0]

    for name in leaves:
        take(name, lambda group, name=name: group == name)  # type: ignore[misc]
    inner = (lambda name: name) if rename is None else rename
    for name in leaves:
        take(name, lambda group, name=name: _renamed(group, inner) == name)  # type: ignore[misc]
    for name in leaves:
        take(name, lambda group, name=name: _tail(group) == _tail(name))  # type: ignore[misc]
    for name, own in leaves.items():
        take(name, lambda group, own=own: groups[group] == own)  # type: ignore[misc]
    return found


def as_described(
    manifest: Manifest, found: dict[str, Value], groups: dict[str, str] | None = None
) -> dict[str, Value]:
    """Return ``found`` with the tensors of tables under the names that the description has.

    ``groups`` is what :func:`locate_tables` returns.
    """
    groups = locate_tables(manifest, found) if groups is None else groups
    here = {group: name for name, group in groups.items()}
    result = {}
    for key, value in found.items():
        module, _, leaf = key.rpartition(".")
        known = module in here and leaf in FILE_NAMES.values()
        result[f"{here[module]}.{leaf}" if known else key] = value
    return result


def _leaves(manifest: Manifest) -> dict[str, set[str]]:
    """Return the last parts of the names of the tensors of every table."""
    leaves: dict[str, set[str]] = {name: set() for name in manifest.tables}
    for key in manifest.tensors():
        name, _, leaf = key.rpartition(".")
        leaves[name].add(leaf)
    return leaves


def _groups(keys: Collection[str], leaves: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the modules in files that hold a table, and the last parts of their tensors."""
    marked = {key.rpartition(".")[0] for key in keys if _MARK in f".{key.rpartition('.')[2]}"}
    groups: dict[str, set[str]] = {name: set() for name in marked | leaves.keys()}
    for key in keys:
        name, _, leaf = key.rpartition(".")
        if name in groups and leaf in FILE_NAMES.values():
            groups[name].add(leaf)
    return {name: found for name, found in groups.items() if found}


def _renamed(module: str, rename: Callable[[str], str]) -> str:
    return rename(f"{module}.weight").removesuffix(".weight")


def _tail(name: str) -> str:
    return name.rpartition(".")[2]
