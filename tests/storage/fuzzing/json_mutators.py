"""Mutations of JSON: one value, two of them, or the text itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

_DEEP = "@deep@"
WORDS = [
    "float", "codes", "entropy", "bits", "int8", "int16", "embedding", "linear", "bag", "mean",
    "sum", "max", "words", "others", "head", "lm_head", "embeddings.word_embeddings",
    "embeddings.token_type_embeddings", "embedding", "shared", "BertModel", "BertForMaskedLM",
    "BertTokenizer", "BertConfig", "Trainer", "pipeline", "AutoModel", "kflats", "bert", "", "..",
]  # fmt: skip
NUMBERS = [
    -1, 0, 1, 2, 3, 7, 8, 16, 24, 199, 200, 201, 400, 255, 256, -(2**31), 2**31 - 1, 2**31, 2**40,
    2**63, 10**30, 0.5, 2.0, -1.0, 1e300, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
OTHERS: list[Any] = [None, True, False, "text", [], {}, [0], [[]], {"a": 1}, [True], ["x"], [None]]
Path = tuple[Any, ...]


def paths(data: Any, at: Path = ()) -> list[Path]:
    """Return where every value of a JSON lies, containers too."""
    found = [at] if at else []
    entries: Any = data.items() if isinstance(data, dict) else ()
    for key, value in enumerate(data) if isinstance(data, list) else entries:
        found += paths(value, (*at, key))
    return found


def look(data: Any, at: Path) -> Any:
    """Return the value at a place."""
    for key in at:
        data = data[key]
    return data


def put(data: Any, at: Path, value: Any) -> None:
    """Set the value at a place."""
    look(data, at[:-1])[at[-1]] = value


def _delete(random: Random, data: Any, at: Path) -> None:
    del look(data, at[:-1])[at[-1]]


def _rename(random: Random, data: Any, at: Path) -> None:
    owner = look(data, at[:-1])
    if isinstance(owner, dict):
        new = random.choice([*WORDS, f"{at[-1]}x", at[-1][:-1]])
        entries = [(new if key == at[-1] else key, value) for key, value in owner.items()]
        owner.clear()
        owner.update(entries)


def _value(random: Random, data: Any, at: Path) -> None:
    pools: list[list[Any]] = [WORDS, NUMBERS, OTHERS]
    put(data, at, random.choice(random.choice(pools)))


def _near(random: Random, data: Any, at: Path) -> None:
    value = look(data, at)
    if isinstance(value, bool):
        put(data, at, not value)
    elif isinstance(value, int):
        changes = [value + 1, value - 1, -value, 2 * value, value // 2, float(value), value + 0.5]
        put(data, at, random.choice([*changes, bool(value), str(value)]))
    elif isinstance(value, float):
        put(data, at, random.choice([2 * value, -value, value + 1, int(value), value * 1e300]))
    elif isinstance(value, str):
        put(data, at, random.choice([value + "x", value.upper(), value[1:], [value]]))
    else:
        _shuffle(random, data, at)


def _shuffle(random: Random, data: Any, at: Path) -> None:
    value = look(data, at)
    if isinstance(value, list):
        change = random.choice(["shuffle", "repeat", "drop", "nest", "long"])
        if change == "shuffle":
            random.shuffle(value)
        elif change == "repeat":
            value += value[-1:]
        elif change == "drop":
            del value[-1:]
        else:
            put(data, at, [value] if change == "nest" else value * 1000)
    elif isinstance(value, dict):
        put(data, at, random.choice([list(value), list(value.values()), [value], {}]))


def _swap(random: Random, data: Any, at: Path) -> None:
    here = look(data, at)
    alike = [each for each in paths(data) if type(look(data, each)) is type(here)]
    other = random.choice(alike)
    if other[: len(at)] != at and at[: len(other)] != other:
        there = look(data, other)
        put(data, at, there)
        put(data, other, here)


def _copy(random: Random, data: Any, at: Path) -> None:
    owner = look(data, at[:-1])
    value = json.loads(json.dumps(look(data, at)))
    if isinstance(owner, dict):
        owner[random.choice([*WORDS, f"{at[-1]}x"])] = value
    else:
        owner.insert(random.randrange(len(owner) + 1), value)


def _deep(random: Random, data: Any, at: Path) -> None:
    put(data, at, _DEEP)


_CHANGES: list[Callable[[Random, Any, Path], None]] = [
    _delete, _rename, _value, _value, _near, _near, _near, _shuffle, _swap, _copy, _deep,
]  # fmt: skip


def mutate(random: Random, data: Any, under: Path) -> tuple[bytes, str]:
    """Return JSON with one change in the part ``under`` a place, and what was done."""
    known = [each for each in paths(data) if each[: len(under)] == under and len(each) > len(under)]
    at = random.choice(known or paths(data))
    change = random.choice(_CHANGES)
    change(random, data, at)
    text = json.dumps(data)
    levels = random.choice([60, 200, 900, 5000, 100_000])
    text = text.replace(f'"{_DEEP}"', "[" * levels + "]" * levels)
    if random.random() < 0.1:
        text = text.replace("Infinity", "1e999")
    return text.encode(), f"{change.__name__.strip('_')} {'.'.join(map(str, at))}"


def mutate_text(random: Random, raw: bytes) -> tuple[bytes, str]:
    """Return JSON whose text was damaged."""
    place = random.randrange(len(raw))
    changed = {
        "cut": raw[:place],
        "byte": raw[:place] + bytes([random.randrange(256)]) + raw[place + 1 :],
        "twice": raw.replace(b'{"', b'{"layers":3,"', 1) if random.random() < 0.5 else raw + raw,
        "utf16": raw.decode().encode("utf-16"),
        "marked": b"\xef\xbb\xbf" + raw,
        "empty": b"",
        "list": b"[" + raw + b"]",
        "word": random.choice([b"null", b"3", b'"x"', b"NaN", b"[]", b"{}", b"9" * 5000]),
    }
    kind = random.choice(list(changed))
    return changed[kind], f"text {kind}"
