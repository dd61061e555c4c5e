"""Checking the values of tables in files before anything is made of them."""

from __future__ import annotations

from kflats.errors import CheckpointError, InputError
from kflats.layers.places import check_labels, columns_of
from kflats.layers.stored import FILE_NAMES
from kflats.quantization.shape import CodeShape
from kflats.storage.files import TensorHeader, find_name, read_tensor
from kflats.storage.manifest import Manifest, TableSpec


def check_values(manifest: Manifest, found: dict[str, TensorHeader]) -> None:
    """Raise unless labels, pivots and numbers of the tables can be what they are said to be.

    Raises
    ------
    CheckpointError
        Naming the file and the tensor.
    """
    for name in manifest.tensors():
        table, _, leaf = name.rpartition(".")
        key = find_name(name, found)
        if key is not None:
            _check(key, leaf, found[key], manifest.tables[table])


def _check(key: str, leaf: str, header: TensorHeader, spec: TableSpec) -> None:
    shape, tensor = spec.shape, read_tensor(header)
    try:
        if leaf == FILE_NAMES["labels"]:
            check_labels(tensor, shape.counts)
        elif leaf == FILE_NAMES["pivots"] and not isinstance(shape, CodeShape):
            columns_of(tensor, shape.basis_ranks, shape.embedding_dim)
    except InputError as error:
        raise CheckpointError(f"{header.path}: {key} is damaged: {error}") from error
    if tensor.is_floating_point() and tensor.numel():
        least, most = (float(end) for end in tensor.aminmax())  # NaN goes through both
        if not abs(least) + abs(most) < float("inf"):
            raise CheckpointError(
                f"{header.path}: tensor {key!r} has numbers from {least} to {most}; all must be "
                "finite."
            )
