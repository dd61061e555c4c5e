"""What a compression did: sizes, errors and where the numbers come from."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from kflats.factors.shape import FactorShape
from kflats.quantization.shape import CodeShape


def provenance() -> dict[str, str]:
    """Return versions and machine, for results that are kept."""
    return {
        "kflats": version("kflats"),
        "torch": torch.__version__,
        "scikit-learn": version("scikit-learn"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


@dataclass(frozen=True, kw_only=True)
class TableReport:
    """One table before and after.

    Attributes
    ----------
    name : str
        Module name; a shared table has the name of its first reader.
    readers : tuple of str
        All modules that read it, tied output heads among them.
    method : str
        How the subspaces were found.
    shape : FactorShape or CodeShape
        Sizes of the factors, or of the packed codes.
    dtype : str
        Storage type, before and after.
    bytes_before, bytes_after : int
        On disk; after includes labels and exact rows.
    relative_error : float
        ``||A - A_hat||_F / ||A||_F`` of what the new layer returns, not squared.
    seconds : float
        Time of finding the factors.
    """

    name: str
    readers: tuple[str, ...]
    method: str
    shape: FactorShape | CodeShape
    dtype: str
    bytes_before: int
    bytes_after: int
    relative_error: float
    seconds: float

    @property
    def compression(self) -> float:
        """Fraction of the table's parameters that was removed (the paper's word)."""
        return self.shape.compression

    @property
    def bits(self) -> float:
        """Bits on disk per parameter of the dense table."""
        return 8 * self.bytes_after / self.shape.dense_parameters

    @property
    def saving(self) -> str:
        """What was saved in words: parameters, or bits where the form is packed codes."""
        if isinstance(self.shape, CodeShape):
            return f"{self.bits:.2f} bits per parameter"
        return f"{self.compression:.1%} of the parameters removed"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object, derived figures included."""
        return {
            **asdict(self),
            "readers": list(self.readers),
            "shape": self.shape.to_dict(),
            "n_clusters": self.shape.n_clusters,
            "rank": self.shape.rank,
            "ranks": list(self.shape.basis_ranks),
            "parameters_before": self.shape.dense_parameters,
            "parameters_after": self.shape.num_parameters,
            "compression": self.compression,
            "bits": self.bits,
        }


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """All tables of one :func:`kflats.compress_` call, and the model as a whole.

    Attributes
    ----------
    tables : tuple of TableReport
        One per table.
    model_bytes_before, model_bytes_after : int
        Bytes of all tensors of the state dict, shared ones once.
    random_state : int
        Seed.
    provenance : dict
        Versions and machine.
    """

    tables: tuple[TableReport, ...]
    model_bytes_before: int
    model_bytes_after: int
    random_state: int
    provenance: dict[str, str] = field(default_factory=provenance)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {**asdict(self), "tables": [table.to_dict() for table in self.tables]}

    def __str__(self) -> str:
        lines = [
            f"{' = '.join(t.readers)}: {t.shape.num_embeddings} x {t.shape.embedding_dim}, "
            f"{t.method}, n_clusters={t.shape.n_clusters}, rank={t.shape.rank_range}: "
            f"{t.bytes_before:,} -> "
            f"{t.bytes_after:,} bytes ({t.saving}), "
            f"relative_error={t.relative_error:.4f}"
            for t in self.tables
        ]
        total = f"model: {self.model_bytes_before:,} -> {self.model_bytes_after:,} bytes"
        return "\n".join([*lines, total])


def tensor_bytes(model: nn.Module) -> int:
    """Return the bytes of the tensors in the state dict, shared ones once."""
    seen: dict[tuple[object, ...], int] = {}
    for tensor in model.state_dict(keep_vars=True).values():
        if isinstance(tensor, Tensor):
            place = id(tensor) if tensor.is_meta else tensor.untyped_storage().data_ptr()
            key = (place, tensor.storage_offset(), tuple(tensor.shape))
            seen[key] = tensor.numel() * tensor.element_size()
    return sum(seen.values())
