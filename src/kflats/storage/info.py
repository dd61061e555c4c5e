"""folder_info: what a compressed checkpoint holds, from its headers."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kflats.errors import CheckpointError
from kflats.factors.shape import FactorShape
from kflats.layers.stored import FILE_NAMES, StoredTable
from kflats.quantization.shape import CodeShape
from kflats.storage.architecture import architecture_name
from kflats.storage.check import check_folder, read_manifest
from kflats.storage.files import TensorHeader, find_header
from kflats.storage.manifest import FORMAT_VERSION
from kflats.storage.seal import check_config


@dataclass(frozen=True, kw_only=True)
class TableInfo:
    """One factorised table in a folder.

    Attributes
    ----------
    name : str
        Module name.
    readers : tuple of str
        All modules that read it.
    shape : FactorShape or CodeShape
        Sizes.
    dtype : str
        Type of the rows that come out, as safetensors writes it.
    num_bytes, dense_bytes : int
        Bytes of its tensors in the files, and of the table in that type.
    resident_bytes : int
        Bytes of its tensors in memory, loaded in that type: unpacked where the file is
        entropy-coded, and with what is found while loading, such as the places of rows.
    method : str
        How the factors were found; 'unknown' if it was not recorded.
    relative_error : float or None
        ``||A - A_hat||_F / ||A||_F`` when the factors were found; training changes it.
    """

    name: str
    readers: tuple[str, ...]
    shape: FactorShape | CodeShape
    dtype: str
    num_bytes: int
    dense_bytes: int
    resident_bytes: int
    method: str
    relative_error: float | None

    @property
    def is_packed(self) -> bool:
        """Whether it is in packed codes, which have no rank, and no numbers that train."""
        return isinstance(self.shape, CodeShape)

    @property
    def saving(self) -> str:
        """What was saved in words: parameters, or bits where the form is packed codes."""
        if self.is_packed:
            return f"{8 * self.num_bytes / self.shape.dense_parameters:.2f} bits per parameter"
        return f"{self.shape.compression:.1%} fewer parameters"


@dataclass(frozen=True, kw_only=True)
class FolderInfo:
    """A compressed checkpoint.

    Attributes
    ----------
    folder : str
        Where it is.
    format_version : int
        Of the description.
    architecture : str
        Class that it was saved from.
    tables : tuple of TableInfo
        The factorised tables.
    tensor_bytes : int
        Bytes of all tensors in the files.
    """

    folder: str
    format_version: int
    architecture: str
    tables: tuple[TableInfo, ...]
    tensor_bytes: int

    @property
    def dense_tensor_bytes(self) -> int:
        """Bytes that all tensors would have with dense tables."""
        saved = sum(table.dense_bytes - table.num_bytes for table in self.tables)
        return self.tensor_bytes + saved

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        tables = [
            {
                **asdict(table),
                "readers": list(table.readers),
                "shape": table.shape.to_dict(),
                "n_clusters": table.shape.n_clusters,
                "rank": table.shape.rank,
                "compression": table.shape.compression,
            }
            for table in self.tables
        ]
        return {**asdict(self), "tables": tables, "dense_tensor_bytes": self.dense_tensor_bytes}


def folder_info(folder: str | os.PathLike[str]) -> FolderInfo:
    """Return what a compressed checkpoint holds; reads the headers, and checks the tables.

    Raises
    ------
    CheckpointError
        If it is no folder that kflats wrote, or it is damaged.
    """
    source = Path(folder)
    if not source.is_dir():
        raise CheckpointError(f"{source} is not a folder; give one that kflats.save wrote.")
    manifest, found = check_folder(source)
    check_config(manifest, read_manifest(source)[1])
    announced = manifest.tensors()
    tables = []
    for name, spec in manifest.tables.items():
        names = [f"{name}.{file_name}" for file_name in FILE_NAMES.values()]
        names = [each for each in names if each in announced]
        headers = [header for each in names if (header := find_header(each, found)) is not None]
        like = "scales" if isinstance(spec.shape, CodeShape) else "coefficients"
        rows = find_header(f"{name}.{FILE_NAMES[like]}", found) or headers[0]
        dense = rows._replace(shape=(spec.shape.dense_parameters,))
        tables.append(
            TableInfo(
                name=name,
                readers=tuple(n for n, each in manifest.modules.items() if each.table == name),
                shape=spec.shape,
                dtype=rows.dtype,
                num_bytes=sum(header.num_bytes for header in headers),
                dense_bytes=dense.num_bytes,
                resident_bytes=_resident(manifest.modules[name].empty_layer(spec.shape), rows),
                method=str(spec.origin.get("method", "unknown")),
                relative_error=spec.origin.get("relative_error"),
            )
        )
    return FolderInfo(
        folder=str(source),
        format_version=FORMAT_VERSION,
        architecture=_architecture(source),
        tables=tuple(tables),
        tensor_bytes=sum(header.num_bytes for header in found.values()),
    )


def _resident(layer: StoredTable, like: TensorHeader) -> int:
    names = (*layer.FACTORS, *layer.SAVED_BUFFERS, *layer.DERIVED_BUFFERS)
    tensors = [tensor for name in names if (tensor := getattr(layer, name)) is not None]
    size = like._replace(shape=(1,)).num_bytes
    return sum(t.numel() * (size if t.is_floating_point() else t.itemsize) for t in tensors)


def _architecture(folder: Path) -> str:
    if (folder / "modules.json").exists():
        return "SentenceTransformer"
    if not (folder / "config.json").exists():
        return "plain module"
    return architecture_name(folder) or "unknown"
