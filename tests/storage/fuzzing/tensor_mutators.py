"""Mutations of safetensors files: the header, the values, and which tensors there are."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import torch

SIZES = {"U8": 1, "I8": 1, "BOOL": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
         "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}  # fmt: skip
_TORCH = {"U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
          "I32": torch.int32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
          "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}  # fmt: skip
_BIG = [2**7, 2**15, 2**31 - 1, 2**40, 2**63 - 1]


def read(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the bytes behind it."""
    (size,) = struct.unpack_from("<Q", raw)
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write(header: dict[str, Any], body: bytes) -> bytes:
    """Return a file."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


Parts = dict[str, tuple[str, list[int], bytes]]


def split(raw: bytes) -> tuple[Parts, dict[str, Any]]:
    """Return dtype, shape and bytes of every tensor, and the metadata."""
    header, body = read(raw)
    metadata = header.pop("__metadata__", {})
    found = {}
    for key, entry in header.items():
        begin, end = entry["data_offsets"]
        found[key] = entry["dtype"], entry["shape"], body[begin:end]
    return found, metadata


def join(parts: Parts, metadata: dict[str, Any]) -> bytes:
    """Return a file that safetensors accepts."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    body = b""
    for key, (dtype, shape, raw) in parts.items():
        begin = len(body)
        body += raw
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, len(body)]}
    return write(header, body)


def mutate_header(random: Random, raw: bytes) -> tuple[bytes, str]:
    """Return a file whose header, or the text of it or the size, was changed."""
    header, body = read(raw)
    key = random.choice([key for key in header if key != "__metadata__"])
    change = random.choice(list(_OF_HEADER) + list(_OF_TEXT))
    if change in _OF_TEXT:
        return _OF_TEXT[change](random, raw, json.dumps(header[key])), f"{change}"
    _OF_HEADER[change](random, header, key)
    return write(header, body), f"{change} {key}"


def _change_dtype(random: Random, header: dict[str, Any], key: str) -> None:
    size = SIZES[header[key]["dtype"]]
    alike = [dtype for dtype, each in SIZES.items() if each == size]
    header[key]["dtype"] = random.choice([*alike, *SIZES, "F4", "X9", 3])


def _change_shape(random: Random, header: dict[str, Any], key: str) -> None:
    header[key]["shape"] = _shape(random, header[key]["shape"])


def _change_offsets(random: Random, header: dict[str, Any], key: str) -> None:
    by = random.choice([-1, 1, 4, -4, 1000, 2**40, 2**64, -(2**63)])
    header[key]["data_offsets"][random.randrange(2)] += by


def _swap_fields(random: Random, header: dict[str, Any], key: str) -> None:
    other = random.choice([each for each in header if each != "__metadata__"])
    field = random.choice(["data_offsets", "shape", "dtype"])
    one, two = header[key], header[other]
    one[field], two[field] = two[field], one[field]


def _change_name(random: Random, header: dict[str, Any], key: str) -> None:
    header[f"{key}x"] = header.pop(key)


def _change_metadata(random: Random, header: dict[str, Any], key: str) -> None:
    header["__metadata__"] = random.choice([{"format": "tf"}, {"a": 1}, {}, None, [], "pt"])


def _change_field(random: Random, header: dict[str, Any], key: str) -> None:
    field = random.choice(list(header[key]))
    header[key][field] = random.choice([None, "x", [], {}, -1, [1.5, 2], True])


_OF_HEADER: dict[str, Callable[[Random, dict[str, Any], str], None]] = {
    "dtype": _change_dtype, "shape": _change_shape, "offsets": _change_offsets,
    "swap": _swap_fields, "name": _change_name, "metadata": _change_metadata,
    "field": _change_field,
}  # fmt: skip


def _more_text(raw: bytes, more: str) -> bytes:
    header, body = read(raw)
    text = (json.dumps(header)[:-1] + more + "}").encode()
    return struct.pack("<Q", len(text)) + text + body


def _nested(random: Random, raw: bytes, entry: str) -> bytes:
    levels = random.choice([100, 1000, 5000, 100_000])
    return _more_text(raw, ',"x":' + "[" * levels + "]" * levels)


def _twice(random: Random, raw: bytes, entry: str) -> bytes:
    keys = [key for key in read(raw)[0] if key != "__metadata__"]
    return _more_text(raw, f", {json.dumps(random.choice(keys))}: {entry}")


def _length(random: Random, raw: bytes, entry: str) -> bytes:
    size = random.choice([0, 1, len(raw), 2**40, 2**63, 2**64 - 1])
    return struct.pack("<Q", size) + raw[8:]


def _cut(random: Random, raw: bytes, entry: str) -> bytes:
    return raw[: random.randrange(len(raw))]


def _longer(random: Random, raw: bytes, entry: str) -> bytes:
    return raw + raw[-random.randrange(1, len(raw)) :]


def _byte(random: Random, raw: bytes, entry: str) -> bytes:
    place = random.randrange(len(raw) - len(read(raw)[1]))
    return raw[:place] + bytes([random.randrange(256)]) + raw[place + 1 :]


_OF_TEXT: dict[str, Callable[[Random, bytes, str], bytes]] = {
    "nested": _nested, "twice": _twice, "length": _length, "cut": _cut, "longer": _longer,
    "byte": _byte,
}  # fmt: skip


def _shape(random: Random, shape: list[int]) -> list[Any]:
    new: list[Any] = list(shape)
    change = random.choice(["turn", "flat", "one", "more", "value", "halve"])
    if change == "turn":
        return new[::-1]
    if change == "flat":
        return [int(torch.Size(shape).numel())]
    if change == "one":
        return [1, *new]
    if change == "halve" and len(new) == 1 and new[0] % 2 == 0:
        return [2, new[0] // 2]
    if change == "more" or not new:
        return [*new, random.choice([0, 2, 2**40, 2**63])]
    new[random.randrange(len(new))] = random.choice(
        [-1, 0, 1, new[0] + 1, 2**31, 2**62, 2**64, 1.5]
    )
    return new


def mutate_tensors(random: Random, raw: bytes) -> tuple[bytes, str]:
    """Return a sound file with other tensors: missing, renamed, swapped, cast, resized, more."""
    parts, metadata = split(raw)
    key, other = random.choice(list(parts)), random.choice(list(parts))
    change = random.choice(["drop", "rename", "swap", "copy", "cast", "resize", "more", "move"])
    dtype, shape, data = parts[key]
    if change == "drop":
        del parts[key]
    elif change == "rename":
        head, _, leaf = key.rpartition(".")
        new = random.choice([f"{key}x", f"x.{key}", f"{head}.x", leaf, f"{head}x.{leaf}"])
        parts = {(new if each == key else each): value for each, value in parts.items()}
    elif change == "swap":
        parts[key], parts[other] = parts[other], parts[key]
    elif change == "copy":
        parts[key] = parts[other]
    elif change == "cast":
        new = random.choice([each for each in _TORCH if each != dtype])
        tensor = torch.frombuffer(bytearray(data), dtype=_TORCH[dtype]) if data else torch.zeros(0)
        data = tensor.to(_TORCH[new]).view(torch.uint8).numpy().tobytes()
        parts[key] = new, shape, data
    elif change == "resize" and shape:
        row = len(data) // max(shape[0], 1)
        rows = random.choice([shape[0] - 1, shape[0] + 1, 0, 2 * shape[0]])
        parts[key] = dtype, [max(rows, 0), *shape[1:]], (data * 3)[: max(rows, 0) * row]
    elif change == "more":
        leaf = random.choice(["kflats_means", "kflats_labels", "kflats_exact", "weight", "bias"])
        parts[f"{key.rpartition('.')[0]}.{leaf}"] = parts[other]
    else:
        parts = {other: parts[other], **parts}
    return join(parts, metadata), f"{change} {key}"


def mutate_values(random: Random, raw: bytes, *, ours: bool) -> tuple[bytes, str]:
    """Return a file with other values in one tensor, of a compressed table or of another."""
    parts, metadata = split(raw)
    tables = {key.rpartition(".")[0] for key in parts if ".kflats_" in key}
    mine = [k for k in parts if k.rpartition(".")[0] in tables and not k.endswith(".bias")]
    known = mine if ours else [key for key in parts if key not in mine]
    key = random.choice([each for each in known if parts[each][2]] or [*parts])
    dtype, shape, data = parts[key]
    tensor = torch.frombuffer(bytearray(data), dtype=_TORCH[dtype]).clone()
    place, change = (
        random.randrange(len(tensor)),
        random.choice(["one", "bit", "swap", "all", "wide"]),
    )
    if change == "bit" or (change == "one" and not tensor.is_floating_point()):
        flat = tensor.view(torch.uint8)
        flat[random.randrange(len(flat))] = random.randrange(256)
    elif change == "one":
        special = [float("nan"), float("inf"), -float("inf"), 0.0, 1e30, -1e30, 1e-30]
        tensor[place] = random.choice(special)
    elif change == "swap":
        other = random.randrange(len(tensor))
        tensor[[place, other]] = tensor[[other, place]]
    elif change == "all":
        tensor.fill_(random.choice([0, 1, 2]))
    else:  # a value that only a wider type can have
        new = random.choice(["I8", "I16", "I32", "I64"])
        wide = tensor.to(_TORCH[new])
        wide[place] = random.choice(
            [-1, -2, *(b for b in _BIG if b <= torch.iinfo(wide.dtype).max)]
        )
        parts[key] = new, shape, wide.view(torch.uint8).numpy().tobytes()
        return join(parts, metadata), f"wide {key}"
    parts[key] = dtype, shape, tensor.view(torch.uint8).numpy().tobytes()
    return join(parts, metadata), f"{change} {key}"
