"""Plain integers: the same bits for every coefficient of every row, whatever the row weighs."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from kflats.config import CompressionConfig
from kflats.quantization.shape import CodeShape


def plain_config(config: CompressionConfig, weight: Tensor, bits: int) -> CompressionConfig:
    """Return what makes plain integers of a table: columns as they are, one gain per row.

    Parameters
    ----------
    config : CompressionConfig
        Gives modules, device and seed; its size, weights and exact rows are not used.
    weight : Tensor of shape (num_embeddings, embedding_dim)
        The table.
    bits : int
        One of :data:`kflats.quantization.codebooks.WIDTHS`.

    Examples
    --------
    >>> import torch
    >>> plain = plain_config(CompressionConfig(bits=1), torch.zeros(30_522, 384), 4)
    >>> plain.target_bytes  # 30,522 gains and 192 bytes each; column scales, the mean, 16 levels
    5892742
    """
    num_embeddings, embedding_dim = weight.shape
    shape = CodeShape(
        num_embeddings=num_embeddings,
        embedding_dim=embedding_dim,
        counts=(num_embeddings,),
        runs=(((bits, embedding_dim),),),
        basis_ids=(0,),
        rotated=(False,),
    )
    return replace(
        config,
        method="codes",
        target_bytes=shape.num_bytes(weight.dtype),
        bits=None,
        compression=None,
        rank=None,
        n_clusters=1,
        affine=None,
        metric=None,
        sample_weight=None,
        relative=0.0,
        exact_ids=(),
        options={"rotated": False, "width": bits},
    )
