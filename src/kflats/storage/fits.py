"""Comparing a described module with the dense one whose place it takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kflats.errors import CheckpointError
from kflats.factors.shape import FactorShape
from kflats.layers import StoredTable
from kflats.quantization.shape import CodeShape
from kflats.storage.manifest import ModuleSpec

_ROUNDED = (torch.float32, torch.float16, torch.bfloat16)


def check_module(
    name: str, spec: ModuleSpec, shape: FactorShape | CodeShape, module: nn.Module, *, sealed: bool
) -> None:
    """Raise unless the table fits where the model has ``module``, and is read as it reads.

    Parameters
    ----------
    name : str
        Of the module in the model.
    spec, shape
        What the checkpoint says of the module and of its table.
    module : nn.Module
        The dense module; a model that was changed by hand may also have a factorised one.
    sealed : bool
        Whether checksums say that the description is the one that was saved. A factor on the
        output that the class of the module does not have, and what a bag makes of its rows, are
        believed then only.

    Raises
    ------
    CheckpointError
        If rows, columns, the factor on the output, or what a bag makes of its rows differ.
    """
    rows_columns = (shape.num_embeddings, shape.embedding_dim)
    weight = getattr(module, "weight", None)
    if weight is not None and tuple(weight.shape) != rows_columns:
        raise CheckpointError(
            f"the checkpoint has a factorised table {name!r} of shape {rows_columns}, the model "
            f"has {tuple(weight.shape)} there: description and model do not belong together."
        )
    known = None if sealed or spec.kind != "embedding" else _scales(module)
    if known is not None and spec.scale not in known:
        raise CheckpointError(
            f"the checkpoint describes {name!r} with scale={spec.scale}; {type(module).__name__} "
            f"has {' or '.join(map(str, sorted(known)))}: description and model do not belong "
            "together."
        )
    if not sealed and spec.kind == "bag" and isinstance(module, nn.EmbeddingBag):
        for field in ("mode", "include_last_offset", "padding_idx"):
            said, has = getattr(spec, field), getattr(module, field)
            if said != has:
                raise CheckpointError(
                    f"the checkpoint describes the bag {name!r} with {field}={said!r}, the model "
                    f"has {has!r}: pass the model it was made from."
                )


def _scales(module: nn.Module) -> set[float] | None:
    """Return the factors that a dense embedding may put on its rows; None if it does not say."""
    if isinstance(module, StoredTable):
        return None
    if type(module).forward is nn.Embedding.forward:
        return {1.0}
    scale = getattr(module, "embed_scale", None)
    if isinstance(scale, Tensor):
        scale = getattr(module, "scalar_embed_scale", None) if scale.is_meta else scale
    if scale is None:
        return None
    # Skeletons are made where the default device is meta.
    exact = torch.as_tensor(scale, dtype=torch.float64, device="cpu")
    if exact.numel() != 1:
        return None
    return {float(exact), *(float(exact.to(dtype)) for dtype in _ROUNDED)}
