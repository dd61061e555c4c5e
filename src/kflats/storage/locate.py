"""Finding the tensors of tables in files that may call them by other names.

transformers gives some tensors other names in its files than they have in memory: the head of
GPT-NeoX is ``lm_head`` here and ``embed_out`` there. A description has the names in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from kflats.storage.manifest import Manifest


class Sized(Protocol):
    """What has a shape, as a tensor or its header."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""


Value = TypeVar("Value", bound=Sized)
_Test = Callable[[str, str], bool]


def locate_tensors(
    manifest: Manifest, found: Mapping[str, Sized], rename: Callable[[str], str] | None = None
) -> dict[str, str]:
    """Return, for the tensors of all tables that are found, their names in the files.

    Parameters
    ----------
    manifest : Manifest
        What the files hold.
    found : mapping
        The tensors in the files by name.
    rename : callable, optional
        Gives the name in memory of a tensor in a file.

    Notes
    -----
    A tensor lies under the name that the description gives, under its own, or under one that
    ``rename`` turns into it, or else under the only one left whose last two parts are the same,
    that lies beside another of its table, or that has its last part and its shape, in this order.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in manifest.tensors().items()}
    located = {name: key for name, key in manifest.names.items() if key in found}
    located |= {name: name for name in wanted if name in found and name not in located}
    renamed = {} if rename is None else {key: rename(key) for key in found}

    def beside(name: str, key: str) -> bool:
        table = _module(name)
        return any(_module(at) == _module(key) for n, at in located.items() if _module(n) == table)

    def alike(name: str, key: str) -> bool:
        return name in manifest.blobs or tuple(found[key].shape) == wanted[name]

    tests: tuple[_Test, ...] = (
        lambda name, key: renamed.get(key) == name,
        lambda name, key: _tail(key) == _tail(name),
        beside,
        alike,
    )
    for test in tests:
        for name in [each for each in wanted if each not in located]:
            taken = set(located.values())
            free = [key for key in found if key not in taken and _leaf(key) == _leaf(name)]
            same = [key for key in free if test(name, key)]
            if len(same) == 1:
                located[name] = same[0]
    return located


def as_described(manifest: Manifest, found: dict[str, Value]) -> dict[str, Value]:
    """Return ``found`` with the tensors of tables under the names that the description has."""
    names = {key: name for name, key in locate_tensors(manifest, found).items()}
    return {names.get(key, key): value for key, value in found.items()}


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _tail(name: str) -> list[str]:
    return name.split(".")[-2:]
