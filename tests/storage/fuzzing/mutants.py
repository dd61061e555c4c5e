"""One mutant of a folder: which file, which kind of change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.storage.fuzzing import json_mutators, tensor_mutators

Files = dict[str, bytes]
"""Contents by path; a path that ends with a slash is an empty folder."""


@dataclass(frozen=True)
class Mutant:
    """A changed folder.

    Attributes
    ----------
    files : dict
        All its files.
    kind : str
        'description' of tables, 'header', 'tensors' and 'values' of their files, and 'files': what
        kflats must notice. 'dense': tensors that belong to no table. 'numbers' in these, and
        'library': files and fields that transformers and sentence-transformers read.
    change : str
        What was done.
    """

    files: Files
    kind: str
    change: str

    @property
    def asks_sizes(self) -> bool:
        """Whether the sizes are asked for as well, after a quarter of the changes."""
        return sum(self.change.encode()) % 4 == 0


KINDS = {"description": 36, "header": 14, "tensors": 14, "values": 14, "numbers": 4, "library": 8,
         "files": 10}  # fmt: skip


def mutate(random: Random, original: Files) -> Mutant:
    """Return a folder with one change."""
    files = dict(original)
    kind = random.choices(list(KINDS), list(KINDS.values()))[0]
    weights = random.choice([name for name in files if name.endswith(".safetensors")])
    if kind == "description":
        return Mutant(*_described(random, files))
    if kind == "library":
        return Mutant(*_library(random, files))
    if kind == "files":
        change = _files(random, files, weights)
        described, ends = described_in(original)[0], (".safetensors", ".index.json", "kflats.json")
        parts = [
            {n: raw for n, raw in each.items() if n == described or n.endswith(ends)}
            for each in (original, files)
        ]
        theirs = parts[0] == parts[1]
        return Mutant(files, "library" if theirs else kind, change)
    if kind == "header":
        files[weights], change = tensor_mutators.mutate_header(random, files[weights])
    elif kind == "tensors":
        files[weights], change = tensor_mutators.mutate_tensors(random, files[weights])
    else:
        changed = tensor_mutators.mutate_values(random, files[weights], ours=kind == "values")
        files[weights], change = changed
        if kind == "numbers" and change.startswith("wide"):
            kind = "dense"
    if kind in ("header", "tensors") and _is_dense(change.split()[-1], original):
        kind = "dense"
    return Mutant(files, kind, change)


def _is_dense(key: str, files: Files) -> bool:
    table, _, leaf = key.rpartition(".")
    data = json.loads(files[described_in(files)[0]])
    tables = data.get("quantization_config", data)["layers"]["tables"]
    return "." in key and (table not in tables or leaf == "bias")


def described_in(files: Files) -> tuple[str, tuple[str, ...]]:
    """Return the file with the description of the tables, and where it lies in it."""
    for name, raw in files.items():
        if name.endswith("kflats.json"):
            return name, ()
        if name.endswith("config.json") and b'"quantization_config"' in raw:
            return name, ("quantization_config",)
    raise AssertionError(f"no description among {list(files)}")


def without_checksums(files: Files) -> Files:
    """Return a folder as kflats wrote it before there were checksums."""
    name, under = described_in(files)
    data = json.loads(files[name])
    del json_mutators.look(data, under)["checksums"]
    return {**files, name: json.dumps(data).encode()}


def _described(random: Random, files: Files) -> tuple[Files, str, str]:
    name, under = described_in(files)
    if random.random() < 0.08:
        before = files[name]
        files[name], change = json_mutators.mutate_text(random, before)
        kind = "library" if _same_block(before, files[name], under) else "description"
        return files, kind, change
    data = json.loads(files[name])
    if random.random() < 0.25:
        change = _together(random, json_mutators.look(data, under), files)
        files[name] = json.dumps(data).encode()
    else:
        files[name], change = json_mutators.mutate(random, data, under)
    return files, "description", change


def _same_block(one: bytes, two: bytes, under: tuple[str, ...]) -> bool:
    try:
        blocks = [json_mutators.look(json.loads(raw), under) for raw in (one, two)]
    except (ValueError, LookupError, TypeError):
        return False
    return bool(under) and blocks[0] == blocks[1]


def _together(random: Random, block: dict[str, Any], files: Files) -> str:
    """Change fields that belong together, as a forger would."""
    layers = block["layers"]
    change = random.choice(["sizes", "sizes", "modules", "names", "names"])
    if change == "names":
        return _renamed(random, layers, files)
    if change == "modules":
        return _of_module(random, layers)
    shape = layers["tables"][random.choice(list(layers["tables"]))]["shape"]
    kind = random.choice(list(_OF_SHAPES))
    _OF_SHAPES[kind](random, shape, random.randrange(len(shape["counts"])))
    return f"together {kind}"


def _rows(random: Random, shape: dict[str, Any], group: int) -> None:
    more = random.choice([-1, 1, shape["num_embeddings"], -(shape["num_embeddings"] // 2)])
    shape["num_embeddings"] += more
    shape["counts"][group] += more


def _columns(random: Random, shape: dict[str, Any], group: int) -> None:
    shape["embedding_dim"] += random.choice([-1, 1, 8, -8])
    if "ranks" in shape:
        shape["ranks"] = [min(rank, shape["embedding_dim"]) for rank in shape["ranks"]]


def _counts(random: Random, shape: dict[str, Any], group: int) -> None:
    shape["counts"][group] += 1
    shape["counts"][random.randrange(len(shape["counts"]))] -= 1


def _runs(random: Random, shape: dict[str, Any], group: int) -> None:
    runs = shape["runs"][group] if "runs" in shape else []
    if runs:
        run = random.choice(runs)
        run[0] = random.choice([1, 2, 3, 4, 5, 6, 8, 16])
        run[1] = max(1, run[1] + random.choice([0, 0, -2, -1, 1, 2]))
    else:
        _shuffled(random, shape, group)


def _shuffled(random: Random, shape: dict[str, Any], group: int) -> None:
    random.shuffle(random.choice([value for value in shape.values() if isinstance(value, list)]))


def _huge(random: Random, shape: dict[str, Any], group: int) -> None:
    big = random.choice([10**6, 2**31 - 1, 2**31, 2**40, 2**62, 10**30])
    groups = len(shape["counts"])
    shape["counts"] = [big] * groups
    shape["num_embeddings"] = big * groups
    if random.random() < 0.5:
        shape["embedding_dim"] = big


_OF_SHAPES: dict[str, Callable[[Random, dict[str, Any], int], None]] = {
    "rows": _rows, "columns": _columns, "counts": _counts, "runs": _runs, "order": _shuffled,
    "huge": _huge,
}  # fmt: skip


def _of_module(random: Random, layers: dict[str, Any]) -> str:
    name = random.choice(list(layers["modules"]))
    module = layers["modules"][name]
    change = random.choice(["scale", "kind", "table"])
    if change == "scale":
        module["scale"] = random.choice([2.0, 0.5, -1.0, 1e30, 1, 4.0])
    elif change == "table":
        module["table"] = random.choice([*layers["modules"], "others"])
    else:
        module["kind"] = random.choice(["embedding", "linear", "bag"])
        if module["kind"] == "bag":
            module |= {"mode": "sum", "include_last_offset": False}
    return f"together {change}"


def _renamed(random: Random, layers: dict[str, Any], files: Files) -> str:
    """Describe a table under the name of another module, or let another module read it."""
    names = {key.rpartition(".")[0] for name in files for key in _keys(name, files[name])}
    new = random.choice(sorted(names))
    module, table = random.choice(list(layers["modules"])), random.choice(list(layers["tables"]))
    if random.random() < 0.4:
        layers["modules"][new] = dict(layers["modules"][module])
        if random.random() < 0.5 and new != module:
            del layers["modules"][module]
        return "together reader"
    for part in layers.values():
        part[new] = part.pop(table)
    for each in layers["modules"].values():
        each["table"] = new if each["table"] == table else each["table"]
    if random.random() < 0.5:
        for name in [name for name in files if name.endswith(".safetensors")]:
            parts, metadata = tensor_mutators.split(files[name])
            moved = {_moved(key, table, new): value for key, value in parts.items()}
            files[name] = tensor_mutators.join(moved, metadata)
    return "together name"


def _moved(key: str, table: str, new: str) -> str:
    head, _, leaf = key.rpartition(".")
    return f"{ {table: new, new: table}.get(head, head) }.{leaf}"


def _keys(name: str, raw: bytes) -> list[str]:
    return list(tensor_mutators.read(raw)[0]) if name.endswith(".safetensors") else []


def _library(random: Random, files: Files) -> tuple[Files, str, str]:
    known = [name for name in files if name.endswith(".json") and not name.endswith("kflats.json")]
    if not known:
        return _described(random, files)
    name = random.choice(known)
    if random.random() < 0.3:
        files[name], change = json_mutators.mutate_text(random, files[name])
        return files, "library", f"{name}: {change}"
    data = json.loads(files[name])
    at = random.choice(_small(data))
    value = json_mutators.look(data, at)
    new = random.choice([*json_mutators.WORDS, *json_mutators.OTHERS, 0, -1, 1.5])
    if at[-1] == "architectures" and random.random() < 0.8:
        new = random.choice([[word] for word in json_mutators.WORDS])
    if isinstance(value, int) and not isinstance(value, bool) and random.random() < 0.5:
        new = value + random.choice([-1, 1])
    json_mutators.put(data, at, new)
    files[name] = json.dumps(data).encode()
    return files, "library", f"{name}: {'.'.join(map(str, at))} = {str(new)[:40]}"


def _small(data: Any) -> list[tuple[Any, ...]]:
    """Return places, of which architectures and containers near the root come up often."""
    found = [at for at in json_mutators.paths(data) if "quantization_config" not in at]
    named = [at for at in found if at[-1] in ("architectures", "path", "type", "weight_map")]
    return (found + named * 5) or [("x",)]


def _files(random: Random, files: Files, weights: str) -> str:
    name, other = random.choice(list(files)), random.choice(list(files))
    change = random.choice(["remove", "empty", "cut", "swap", "away", "more", "index"])
    content = files[name]
    if change == "more":
        new = ["more.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "a/b.pt",
               "a/kflats.json", "a/config.json", "kflats.json", "modules.json"]  # fmt: skip
        files[random.choice(new)] = random.choice([content, files[weights], b"x"])
    elif change == "index":
        place = random.choice(["../x.safetensors", weights, "x.safetensors", "/etc/hosts", 3])
        index = random.choice([{"weight_map": {"x": place}}, {"weight_map": [place]}, {}])
        files["model.safetensors.index.json"] = json.dumps(index).encode()
        if random.random() < 0.5:
            files["model-1.safetensors"] = files.pop(weights)
    elif change == "swap":
        files[name], files[other] = files[other], content
    elif change in ("empty", "cut"):
        files[name] = content[: random.randrange(len(content) + 1)] if change == "cut" else b""
    else:
        del files[name]
        if change == "away":
            files[random.choice([f"{name}.x", f"x{name}", f"inner/{name}", f"{name}/"])] = content
    return f"{change} {name}"
