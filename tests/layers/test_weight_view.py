from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kflats import FactorizedEmbedding, FactorizedLinear, UnsupportedModelError
from kflats.layers import FactorTable
from tests.layers.dense import assert_same_gradients, dense_table, filled, mixed_shape, wide_copy

HIDDEN = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IDS = torch.tensor([[0, 3, 3], [29, 7, 12]])
BIAS = torch.linspace(-1, 1, 30, dtype=torch.float64)

PRODUCTS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "@ .T": lambda x, w: x @ w.T,
    "@ .mT": lambda x, w: x @ w.mT,
    "@ .t()": lambda x, w: x @ w.t(),
    "torch.matmul": lambda x, w: torch.matmul(x, w.t()),
    "Tensor.matmul": lambda x, w: x.matmul(w.T),
    "F.linear": F.linear,
    "F.linear with bias": lambda x, w: F.linear(x, w, BIAS),
    "F.linear with named bias": lambda x, w: F.linear(x, w, bias=BIAS),
    "of one state": lambda x, w: x[0, 0] @ w.T,
}
ROWS: dict[str, Callable[[Any], Tensor]] = {
    "[id]": lambda w: w[3],
    "[-1]": lambda w: w[-1],
    "[list]": lambda w: w[[5, -30, 5]],
    "[ids]": lambda w: w[IDS],
    "[int32 ids]": lambda w: w[IDS.int()],
    "[negative ids]": lambda w: w[IDS - 30],
    "[numpy ids]": lambda w: w[IDS.numpy()],
    "[id, :]": lambda w: w[3, :],
    "[ids, :]": lambda w: w[IDS, :],
    "[ids, ...]": lambda w: w[IDS, ...],
    "F.embedding": lambda w: F.embedding(IDS, w),
    "F.embedding with options": lambda w: F.embedding(IDS, w, padding_idx=None, sparse=False),
}


@pytest.fixture(params=[FactorizedEmbedding, FactorizedLinear], ids=["embedding", "linear"])
def layer(request: pytest.FixtureRequest) -> FactorTable:
    made: FactorTable = filled(request.param(mixed_shape(affine=True))).double()
    return made


@pytest.mark.parametrize("read", PRODUCTS.values(), ids=list(PRODUCTS))
def test_products_equal_those_of_the_dense_table(
    layer: FactorTable, read: Callable[[Tensor, Any], Tensor]
) -> None:
    twin = wide_copy(layer)
    ours, theirs = HIDDEN.clone().requires_grad_(), HIDDEN.clone().requires_grad_()
    result, expected = read(ours, layer.weight), read(theirs, dense_table(twin))
    torch.testing.assert_close(result, expected)
    result.square().sum().backward()
    expected.square().sum().backward()
    assert_same_gradients(layer, twin)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("read", ROWS.values(), ids=list(ROWS))
def test_rows_equal_those_of_the_dense_table(
    layer: FactorTable, read: Callable[[Any], Tensor]
) -> None:
    twin = wide_copy(layer)
    result, expected = read(layer.weight), read(dense_table(twin))
    torch.testing.assert_close(result, expected)
    result.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_rows_before_the_scale_and_with_gradient_for_padding() -> None:
    layer = filled(FactorizedEmbedding(mixed_shape(), padding_idx=3, scale=2.0))
    torch.testing.assert_close(2.0 * layer.weight[IDS], layer(IDS))
    layer.weight[3].sum().backward()
    assert layer.coefficients.grad is not None
    assert layer.coefficients.grad.any()


@pytest.mark.parametrize(
    "read",
    [
        lambda x, w: F.linear(x, weight=w),
        lambda x, w: torch.matmul(x, other=w.T),
    ],
    ids=["linear", "matmul"],
)
def test_products_with_named_arguments(
    layer: FactorTable, read: Callable[[Tensor, Any], Tensor]
) -> None:
    torch.testing.assert_close(read(HIDDEN, layer.weight), read(HIDDEN, dense_table(layer)))


@pytest.mark.parametrize(
    "read",
    [
        lambda w: w[1:3],
        lambda w: w[:],
        lambda w: w[None],
        lambda w: w[...],
        lambda w: w[:, 0],
        lambda w: w[3, 0],
        lambda w: w[IDS, IDS],
        lambda w: w[3, :, None],
        lambda w: w[torch.ones(30, dtype=torch.bool)],
        lambda w: w[True],
        lambda w: w[torch.tensor([0.0])],
        lambda w: w.T[3],
        lambda w: w.data,
        lambda w: w.float(),
        lambda w: w.sum(),
        lambda w: torch.stack([w]),
        lambda w: torch.add(w, 1),
        lambda w: HIDDEN @ w,
        lambda w: torch.matmul(HIDDEN, w),
        lambda w: F.linear(HIDDEN, w.T),
        lambda w: F.embedding(IDS, w.T),
        lambda w: torch.einsum("btd,nd->btn", HIDDEN, w),
        lambda w: F.linear(w, HIDDEN[0]),
    ],
)
def test_reading_anything_else_is_refused(
    layer: FactorTable, read: Callable[[Any], object]
) -> None:
    with pytest.raises(UnsupportedModelError, match=r"\(weight.*layer\.dense_rows\(\)"):
        read(layer.weight)


@pytest.mark.parametrize("read", [lambda w: w + 1, lambda w: w @ HIDDEN, float])
def test_arithmetic_fails(layer: FactorTable, read: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError):
        read(layer.weight)


@pytest.mark.parametrize("bad", [30, -31])
def test_ids_out_of_range_raise(layer: FactorTable, bad: int) -> None:
    with pytest.raises(IndexError, match="out of range"):
        layer.weight[bad]


def test_what_it_is_costs_nothing() -> None:
    layer = FactorizedEmbedding(mixed_shape(), dtype=torch.bfloat16, device="meta")
    view = layer.weight
    assert (view.shape, view.size(), view.size(1), view.size(-2)) == ((30, 6), (30, 6), 6, 30)
    assert (view.T.shape, view.T.T.shape, len(view), len(view.T)) == ((6, 30), (30, 6), 30, 6)
    assert (view.ndim, view.dim(), view.numel()) == (2, 2, 180)
    assert (view.dtype, view.device.type) == (torch.bfloat16, "meta")
    assert view.requires_grad
    assert not layer.requires_grad_(False).weight.requires_grad
    assert repr(view) == "TableView(shape=(30, 6), dtype=torch.bfloat16, device=meta)"
