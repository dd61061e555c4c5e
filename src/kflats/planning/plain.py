"""Plain integers: the same bits for every coefficient of every row, whatever the row weighs."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from kflats.config import CompressionConfig
from kflats.factors.shape import STORED
from kflats.quantization.shape import CodeShape


def plain_config(config: CompressionConfig, weight: Tensor, bits: int) -> CompressionConfig:
    """Return what makes plain integers of a table: columns as they are, one gain per row.

    Parameters
    ----------
    config : CompressionConfig
        Gives modules, device and seed; its size and weights are not used, and of its exact rows
        those that are zero.
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
    zeros = tuple(i for i in sorted(set(config.exact_ids)) if not bool(weight[i].any()))
    shape = CodeShape(
        num_embeddings=num_embeddings,
        embedding_dim=embedding_dim,
        counts=(num_embeddings - len(zeros), *([len(zeros)] if zeros else ())),
        runs=(((bits, embedding_dim),), *([()] if zeros else ())),
        basis_ids=(0, *([STORED] if zeros else ())),
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
        exact_ids=zeros,
        options={"rotated": False, "width": bits},
    )
