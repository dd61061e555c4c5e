from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kflats import FactorizedEmbedding, FactorizedLinear, FactorShape
from kflats.layers import FactorTable
from tests.layers.dense import FORMS, assert_same_gradients, filled, mixed_shape, wide_copy

IDS = [torch.tensor([1, 2, 2, 29]), torch.tensor([[0, 4, 4], [17, 8, 9]])]


def hidden(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, 6, generator=generator, dtype=torch.float64)


CASES = [
    pytest.param(FactorizedEmbedding, IDS, id="embedding"),
    pytest.param(FactorizedLinear, [hidden(4), hidden(2, 7)], id="linear"),
]


SHAPES = {
    "linear bases": mixed_shape(),
    "affine bases": mixed_shape(affine=True),
    **{name: FORMS[name] for name in ("ragged", "echelon", "echelon, affine, exact rows")},
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize(("layer_class", "inputs"), CASES)
def test_compiles_forward_and_backward_without_graph_breaks(
    layer_class: type[FactorTable], inputs: list[Tensor], shape: FactorShape
) -> None:
    layer = filled(layer_class(shape)).double()
    twin = wide_copy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for each in inputs:
        torch.testing.assert_close(compiled(each), twin(each), rtol=0, atol=0)
        compiled(each).square().sum().backward()
        twin(each).square().sum().backward()
    assert_same_gradients(layer, twin)


def test_compiled_embedding_gives_no_gradient_to_padding() -> None:
    layer = filled(FactorizedEmbedding(mixed_shape(), padding_idx=2)).double()
    twin = wide_copy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(IDS[0]).square().sum().backward()
    twin(IDS[0]).square().sum().backward()
    assert_same_gradients(layer, twin)


def test_compiled_head_gives_the_gradient_of_hidden_and_bias() -> None:
    layer = filled(FactorizedLinear(mixed_shape(True), bias=True)).double()
    twin = wide_copy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    ours, expected = hidden(3).requires_grad_(), hidden(3).requires_grad_()
    compiled(ours).square().sum().backward()
    twin(expected).square().sum().backward()
    torch.testing.assert_close(ours.grad, expected.grad)
    assert_same_gradients(layer, twin)


def test_products_with_the_weight_compile() -> None:
    layer = filled(FactorizedEmbedding(mixed_shape())).double()

    def tied(ids: Tensor) -> Tensor:
        logits: Tensor = layer(ids) @ layer.weight.T
        return logits

    compiled = torch.compile(tied, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IDS[1]), tied(IDS[1]))


@pytest.mark.slow
@pytest.mark.parametrize(("layer_class", "inputs"), CASES)
def test_compiles_with_inductor(layer_class: type[FactorTable], inputs: list[Tensor]) -> None:
    layer = filled(layer_class(mixed_shape(True))).double()
    compiled = torch.compile(layer, fullgraph=True)
    for each in inputs:
        torch.testing.assert_close(compiled(each), layer(each))
