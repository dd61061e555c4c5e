"""Every form of groups and bases, beside exact rows, against dense arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kflats import FactorizedEmbedding, FactorizedLinear, FactorShape
from kflats.layers import FactorTable
from tests.layers.dense import (
    DTYPES,
    FORMS,
    assert_same_gradients,
    dense_table,
    filled,
    mixed_shape,
    rounding,
    wide_copy,
)

SHAPES = {"mixed": mixed_shape(), "mixed, affine": mixed_shape(affine=True), **FORMS}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))


def hidden(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*shape, 6, generator=generator, dtype=torch.float64)


def test_reference_uses_the_first_directions_of_the_basis() -> None:
    layer = filled(FactorizedEmbedding(mixed_shape())).double()
    assert layer.labels is not None
    table, labels = dense_table(layer), layer.labels
    assert [int((labels == group).sum()) for group in range(4)] == [9, 8, 7, 6]
    second = layer.coefficients[36:52].view(8, 2) @ layer.bases[:2]
    torch.testing.assert_close(table[labels == 1], second)
    third = layer.coefficients[52:73].view(7, 3) @ layer.bases[4:7]
    torch.testing.assert_close(table[labels == 2], third)
    torch.testing.assert_close(table[labels == 3], layer.coefficients[73:].view(6, 6))


@every_shape
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_equal_dense_arithmetic(shape: FactorShape, dtype: torch.dtype) -> None:
    layer = filled(FactorizedEmbedding(shape)).to(dtype)
    table = dense_table(wide_copy(layer))
    size = rounding(dtype, table)
    for ids in (torch.arange(30), torch.tensor([[3, 3], [29, 0]]), torch.tensor(8)):
        torch.testing.assert_close(layer(ids).double(), table[ids], rtol=0, atol=size)


@every_shape
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_equal_dense_arithmetic(shape: FactorShape, dtype: torch.dtype) -> None:
    layer = filled(FactorizedLinear(shape, bias=True)).to(dtype)
    states, twin = hidden(2, 3).to(dtype), wide_copy(layer)
    assert twin.bias is not None
    # The bases of this layer are not orthonormal: their size counts too.
    size = rounding(dtype, states, twin.bases, twin.bases, dense_table(twin))
    expected = states.double() @ dense_table(twin).T + twin.bias
    torch.testing.assert_close(layer(states).double(), expected, rtol=0, atol=size)


@every_shape
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_gradients_of_rows_equal_dense_arithmetic(
    shape: FactorShape, padding_idx: int | None
) -> None:
    layer = filled(FactorizedEmbedding(shape, padding_idx=padding_idx)).double()
    twin = wide_copy(layer)
    ids = torch.tensor([[3, 0, 3, 29], [12, 0, 17, 8], [20, 21, 22, 23]])
    target = torch.randn(3, 4, 6, dtype=torch.float64)
    (layer(ids) * target).sum().backward()
    rows = dense_table(twin)[ids]
    if padding_idx is not None:
        rows = torch.where((ids == padding_idx)[..., None], rows.detach(), rows)
    (rows * target).sum().backward()
    assert_same_gradients(layer, twin)


@every_shape
def test_gradients_of_rows_in_bfloat16(shape: FactorShape) -> None:
    layer = filled(FactorizedEmbedding(shape)).bfloat16()
    twin = wide_copy(layer)
    ids = torch.arange(30).repeat(20)
    layer(ids).sum().backward()
    dense_table(twin).sum().mul(20).backward()
    for (name, ours), expected in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None
        if ours.numel() and expected.grad is not None:
            size = 4 * torch.finfo(torch.bfloat16).eps * float(expected.grad.abs().max())
            error = (ours.grad.double() - expected.grad).abs().max()
            assert float(error) <= size, name


@every_shape
def test_gradients_of_logits_equal_dense_arithmetic(shape: FactorShape) -> None:
    layer = filled(FactorizedLinear(shape, bias=True)).double()
    twin = wide_copy(layer)
    ours, theirs = hidden(4).requires_grad_(), hidden(4).requires_grad_()
    target = torch.randn(4, 30, dtype=torch.float64)
    (layer(ours) * target).sum().backward()
    assert twin.bias is not None
    ((theirs @ dense_table(twin).T + twin.bias) * target).sum().backward()
    assert_same_gradients(layer, twin)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("layer_class", "read"),
    [
        (FactorizedEmbedding, lambda layer: layer(torch.arange(30))),
        (FactorizedLinear, lambda layer: layer(torch.eye(6)).T),
    ],
    ids=["embedding", "linear"],
)
def test_trains_towards_a_table(
    layer_class: type[FactorTable], read: Callable[[FactorTable], Tensor]
) -> None:
    layer = filled(layer_class(mixed_shape(affine=True)))
    goal = filled(layer_class(mixed_shape(affine=True)), seed=1).dense_rows()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = (read(layer) - goal).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
