from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kflats import Factorization, FactorizedLinear, FactorShape, InputError
from tests.conftest import spectral_table
from tests.layers.dense import (
    DTYPES,
    FORMS,
    KINDS,
    assert_same_gradients,
    dense_table,
    factors_of,
    filled,
    rounding,
    wide_copy,
)

N, D = 400, 24
EXACT = (0, 7, 399)


def dense_head(dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    head = nn.Linear(D, N, bias=bias, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(spectral_table())
        if bias:
            head.bias.copy_(torch.linspace(-3, 3, N))
    return head


def make(
    kind: str = "linear",
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    exact: tuple[int, ...] = EXACT,
) -> FactorizedLinear:
    head = dense_head(dtype, bias)
    return FactorizedLinear.from_linear(
        head, factors_of(head.weight, kind), exact_ids=torch.tensor(exact).long()
    )


def states(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*shape, D, generator=generator, dtype=torch.float64).to(dtype)


def expected_logits(layer: FactorizedLinear, hidden: Tensor) -> Tensor:
    """Return the logits of the dense table, in float64."""
    twin = wide_copy(layer)
    logits = hidden.double() @ dense_table(twin).T
    return logits if twin.bias is None else logits + twin.bias


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exact", [(), EXACT], ids=["no exact rows", "exact rows"])
@pytest.mark.parametrize(
    "shape", [(), (5,), (2, 3), (0,), (2, 0)], ids=lambda shape: f"{len(shape) + 1} axes {shape}"
)
def test_logits_equal_dense_arithmetic(
    kind: str, exact: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    layer, hidden = make(kind, torch.float64, exact=exact), states(*shape, dtype=torch.float64)
    logits = layer(hidden)
    assert logits.shape == (*shape, N)
    torch.testing.assert_close(logits, expected_logits(layer, hidden))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
def test_every_dtype(kind: str, dtype: torch.dtype, bias: bool) -> None:
    layer, hidden = make(kind, dtype, bias), states(6, dtype=dtype)
    logits = layer(hidden)
    assert logits.dtype == dtype
    # The projection, the product, the mean and the bias are each rounded once.
    size = rounding(dtype, hidden, dense_table(wide_copy(layer))) + 3 * torch.finfo(dtype).eps
    torch.testing.assert_close(logits.double(), expected_logits(layer, hidden), rtol=0, atol=size)


def test_exact_outputs_are_those_of_the_dense_head() -> None:
    head, layer, hidden = dense_head(), make(), states(9)
    near = torch.isclose(layer(hidden), head(hidden), rtol=1e-5, atol=1e-5).all(0)
    assert near[list(EXACT)].all()
    assert int(near.sum()) < N // 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=["1 axis", "2 axes", "3 axes"])
def test_gradients_equal_those_of_dense_arithmetic(kind: str, shape: tuple[int, ...]) -> None:
    layer = make(kind, torch.float64)
    twin = wide_copy(layer)
    ours, theirs = (states(*shape, dtype=torch.float64).requires_grad_() for _ in range(2))
    target = torch.randn(*shape, N, dtype=torch.float64)
    (layer(ours) * target).sum().backward()
    assert twin.bias is not None
    ((theirs @ dense_table(twin).T + twin.bias) * target).sum().backward()
    assert_same_gradients(layer, twin)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("echelon", [False, True], ids=["plain", "echelon"])
@pytest.mark.parametrize("affine", [False, True])
def test_gradcheck(affine: bool, echelon: bool) -> None:
    shape = FactorShape.uniform(
        9, 4, n_clusters=2, rank=2, affine=affine, n_exact=2, echelon=echelon
    )
    layer = filled(FactorizedLinear(shape, bias=True, dtype=torch.float64))
    names = [name for name, _ in layer.named_parameters()]
    factors = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    hidden = states(2, dtype=torch.float64)[:, :4].clone().requires_grad_()

    def logits(hidden: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        result: Tensor = torch.func.functional_call(layer, state, (hidden,))
        return result

    assert torch.autograd.gradcheck(logits, (hidden, *factors))


def test_empty_hidden_gives_zero_gradients() -> None:
    layer = make()
    layer(states(0)).sum().backward()
    assert all(p.grad is not None and not bool(p.grad.any()) for p in layer.parameters())


def test_frozen_parts_get_no_gradient() -> None:
    layer = make("affine")
    for name in ("coefficients", "means"):
        getattr(layer, name).requires_grad_(False)
    layer(states(3)).square().sum().backward()
    assert layer.coefficients.grad is None
    assert layer.means is not None
    assert layer.means.grad is None
    assert layer.bases.grad is not None
    hidden = states(3).requires_grad_()
    layer.requires_grad_(False)(hidden).sum().backward()
    assert hidden.grad is not None


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(0, 1),
    "columns first": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1].expand(5, 3, D),
    "strided": lambda x: x[:, ::2],
    "overlapping": lambda x: x.as_strided((3, 2, D), (1, 2, 1)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=list(VIEWS))
def test_hidden_and_gradient_need_not_be_contiguous(view: Callable[[Tensor], Tensor]) -> None:
    layer, hidden = make("affine", torch.float64), view(states(2, 3, dtype=torch.float64))
    assert not hidden.is_contiguous()
    torch.testing.assert_close(layer(hidden), expected_logits(layer, hidden))
    ours, theirs = hidden.detach().requires_grad_(), hidden.detach().requires_grad_()
    for logits in (layer(ours), expected_logits(layer, theirs)):
        turned = logits.transpose(0, 1)
        turned.backward(torch.linspace(-1, 1, turned.numel(), dtype=torch.float64).view_as(turned))
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
def test_autocast_computes_in_bfloat16_like_a_dense_head(bias: bool) -> None:
    layer, hidden = make("affine", bias=bias), states(2, 3).requires_grad_()
    dense = layer.to_linear()
    with torch.autocast("cpu", torch.bfloat16):
        logits, expected = layer(hidden), dense(hidden)
    assert logits.dtype == expected.dtype == torch.bfloat16
    size = rounding(torch.bfloat16, states(2, 3), dense.weight)
    torch.testing.assert_close(logits, expected, rtol=0, atol=size)
    logits.float().square().sum().backward()
    assert hidden.grad is not None
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}
    assert all(p.grad is not None for p in layer.parameters())


def test_autocast_leaves_float64_as_a_dense_head_does() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = make(dtype=torch.float64, bias=False)(states(2, dtype=torch.float64))
    assert logits.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_operators_follow_the_rules_of_pytorch(kind: str) -> None:
    layer = make(kind)
    hidden = states(2, 3).requires_grad_()
    factors = (layer.coefficients, layer.bases, layer.places, layer.means, layer.columns)
    torch.library.opcheck(torch.ops.kflats.logits.default, (hidden, *factors, *layer.sizes))


@pytest.mark.parametrize("form", ["ragged", "echelon, affine, exact rows"])
def test_operators_follow_the_rules_of_pytorch_in_every_form(form: str) -> None:
    layer = filled(FactorizedLinear(FORMS[form]))
    hidden = states(2, 3)[..., :6].clone().requires_grad_()
    factors = (layer.coefficients, layer.bases, layer.places, layer.means, layer.columns)
    torch.library.opcheck(torch.ops.kflats.logits.default, (hidden, *factors, *layer.sizes))


def test_head_of_another_dtype_or_width_is_refused() -> None:
    layer = make()
    with pytest.raises(RuntimeError, match="dtype"):
        layer(states(2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(states(2)[:, :20])


@pytest.mark.parametrize("width", [5, 7])
def test_head_in_echelon_form_refuses_another_width(width: int) -> None:
    layer = FactorizedLinear(FORMS["echelon"])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.ones(2, width))


def test_autocast_casts_factors_in_echelon_form() -> None:
    layer, hidden = filled(FactorizedLinear(FORMS["echelon, affine"])), states(4)[:, :6]
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(hidden)
    assert logits.dtype == torch.bfloat16
    factors = (hidden, layer.basis(0), layer.basis(2), layer.dense_rows())
    size = rounding(torch.bfloat16, *factors)
    torch.testing.assert_close(logits.float(), layer(hidden), rtol=0, atol=size)


def test_replacement_uses_the_bias_and_state_of_the_head() -> None:
    head = dense_head().requires_grad_(False).eval()
    layer = FactorizedLinear.from_linear(head, Factorization.svd(head.weight, 3))
    assert layer.bias is head.bias
    assert not any(p.requires_grad for p in layer.parameters())
    assert not layer.training
    assert (layer.in_features, layer.out_features) == (head.in_features, head.out_features)


def test_to_linear_gives_the_same_logits() -> None:
    layer, hidden = make("affine").eval(), states(3)
    dense = layer.to_linear()
    assert type(dense) is nn.Linear
    assert (dense.in_features, dense.out_features, dense.training) == (D, N, False)
    assert dense.bias is layer.bias
    assert dense.weight.requires_grad
    torch.testing.assert_close(dense(hidden), layer(hidden), rtol=1e-4, atol=1e-4)
    assert make(bias=False).to_linear().bias is None


def test_factors_of_another_head_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(40, 8\) and the factorisation \(400, 24\)"):
        FactorizedLinear.from_linear(nn.Linear(8, 40), Factorization.svd(spectral_table(), 3))
