from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kflats import InputError
from kflats.layers import QuantizedEmbedding, QuantizedLinear
from kflats.quantization.codes import Codes
from kflats.quantization.fit import code_table
from kflats.quantization.records import decode
from kflats.quantization.settings import CodeSettings
from tests.conftest import spectral_table

N, D = 400, 24
EXACT = torch.tensor([0, 7, 399])
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"rotated": False},
    "rotated": {},
    "two bases": {"n_clusters": 2, "basis_bits": 16},
    "one group": {"max_rungs": 1},
}
forms = pytest.mark.parametrize("form", FORMS)
IDS = [torch.tensor([5, 0, 399, 5, 5]), torch.tensor([[1, 2, 3], [399, 2, 7]])]


def coded(form: str = "rotated", dtype: torch.dtype = torch.float32) -> Codes:
    return copy.deepcopy(_coded(form, dtype))


@cache
def _coded(form: str, dtype: torch.dtype) -> Codes:
    exact = None if form == "one group" else EXACT
    weights = torch.linspace(1, 0.05, N)
    settings = CodeSettings(**FORMS[form])
    table = spectral_table().to(dtype)
    return code_table(table, 9_000, sample_weight=weights, exact_ids=exact, settings=settings)


def embedding(
    form: str = "rotated", dtype: torch.dtype = torch.float32, padding_idx: int | None = None
) -> QuantizedEmbedding:
    dense = nn.Embedding(N, D, padding_idx=padding_idx, dtype=dtype)
    return QuantizedEmbedding.from_embedding(dense, coded(form, dtype))


def head(form: str = "rotated", bias: bool = True) -> QuantizedLinear:
    dense = nn.Linear(D, N, bias=bias)
    return QuantizedLinear.from_linear(dense, coded(form))


def states(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*shape, D, generator=generator).to(dtype)


def dense_logits(layer: QuantizedLinear, hidden: Tensor) -> Tensor:
    logits = hidden @ layer.codes.table().T
    return logits if layer.bias is None else logits + layer.bias


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@forms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_those_of_the_codes(form: str, dtype: torch.dtype) -> None:
    layer = embedding(form, dtype)
    found = layer(torch.arange(N))
    assert found.dtype == dtype
    torch.testing.assert_close(found, layer.codes.table().to(dtype))
    assert not found.requires_grad


@forms
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_ids_may_repeat_and_have_any_shape(form: str, dtype: torch.dtype) -> None:
    layer = embedding(form)
    table = layer.codes.table()
    generator = torch.Generator().manual_seed(0)
    for shape in [(), (1,), (0,), (2, 0), (50,), (3, 40), (2, 3, 4)]:
        ids = torch.randint(0, N, shape, generator=generator)
        found = layer(ids.to(dtype))
        assert found.shape == (*shape, D)
        torch.testing.assert_close(found, table[ids])


def test_ids_need_not_be_contiguous() -> None:
    layer, ids = embedding(), torch.arange(60).view(6, 10).T[::2]
    torch.testing.assert_close(layer(ids), layer.codes.table()[ids])


@forms
@pytest.mark.parametrize("ids", [[N], [-1], [0, 3, N + 5], [-N, 2], [2**40]], ids=str)
def test_ids_out_of_range_are_refused(form: str, ids: list[int]) -> None:
    with pytest.raises(IndexError, match="out of range"):
        embedding(form)(torch.tensor(ids))


@forms
def test_only_rows_that_are_asked_for_are_decoded(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, sizes = embedding(form), []

    def counting(records: Tensor, *others: Any) -> None:
        sizes.append(len(records))
        decode(records, *others)

    monkeypatch.setattr("kflats.quantization.codes.decode", counting)
    layer(torch.tensor([[5, 9, 5, 9], [9, 9, 200, 5]]))
    assert 1 <= sum(sizes) <= 3
    sizes.clear()
    layer(torch.zeros(0, dtype=torch.int64))
    assert not sizes


def test_padding_gives_its_row_like_any_other_id() -> None:
    layer = embedding(padding_idx=-2)
    assert layer.padding_idx == N - 2
    assert torch.equal(layer(torch.tensor([N - 2]))[0], embedding()(torch.tensor([N - 2]))[0])
    assert "padding_idx=398" in repr(layer)
    with pytest.raises(InputError, match="padding_idx=400"):
        QuantizedEmbedding(layer.shape, padding_idx=N)


def test_the_output_is_scaled() -> None:
    layer = QuantizedEmbedding(coded().shape, scale=4.0).fill(coded())
    torch.testing.assert_close(layer(IDS[1]), 4 * embedding()(IDS[1]), rtol=0, atol=0)
    assert layer.embed_scale == 4
    dense = layer.to_embedding()
    torch.testing.assert_close(dense(IDS[1]), layer(IDS[1]))


def test_codes_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match="does not fit a layer of"):
        QuantizedEmbedding(coded("plain").shape).fill(coded())


def test_embeddings_with_options_that_change_the_table_are_refused() -> None:
    with pytest.raises(InputError, match="max_norm"):
        QuantizedEmbedding.from_embedding(nn.Embedding(N, D, max_norm=1.0), coded())


def test_labels_that_do_not_match_are_refused() -> None:
    layer = embedding()
    assert layer.labels is not None
    layer.labels[:50] = 0
    with pytest.raises(InputError, match="labels and description do not belong together"):
        layer.index_()


@forms
def test_a_new_layer_has_the_tensors_of_its_shape(form: str) -> None:
    filled = embedding(form)
    fresh = QuantizedEmbedding(filled.shape)
    for name, tensor in filled.state_dict().items():
        assert fresh.state_dict()[name].shape == tensor.shape
        assert fresh.state_dict()[name].dtype == tensor.dtype
    assert fresh.num_bytes == sum(t.nbytes for t in fresh.state_dict().values())
    assert fresh(torch.arange(N)).shape == (N, D)


@forms
def test_a_state_dict_comes_back(form: str) -> None:
    layer = embedding(form)
    for assign in (False, True):
        fresh = QuantizedEmbedding(layer.shape)
        fresh.load_state_dict(copy.deepcopy(layer.state_dict()), assign=assign)
        assert torch.equal(fresh(torch.arange(N)), layer(torch.arange(N)))
        assert not any(parameter.requires_grad for parameter in fresh.parameters())


@forms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_leave_the_codes_alone(form: str, dtype: torch.dtype) -> None:
    layer = embedding(form)
    before = layer(torch.arange(N))
    cast = copy.deepcopy(layer).half() if dtype == torch.float16 else copy.deepcopy(layer).to(dtype)
    assert torch.equal(cast.coefficients, layer.coefficients)
    assert torch.equal(cast.bases, layer.bases)
    rows = cast(torch.arange(N))
    assert rows.dtype == cast.weight.dtype == dtype
    assert float((rows.float() - before).norm() / before.norm()) < 4 * torch.finfo(dtype).eps


def test_a_copy_shares_nothing() -> None:
    layer = embedding()
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(IDS[0]), layer(IDS[0]))
    with torch.no_grad():
        twin.scales.zero_()
    assert bool(layer(torch.tensor([5])).any())


@forms
@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (2, 0)], ids=str)
def test_logits_equal_dense_arithmetic(form: str, bias: bool, shape: tuple[int, ...]) -> None:
    layer, hidden = head(form, bias), states(*shape)
    logits = layer(hidden)
    assert logits.shape == (*shape, N)
    torch.testing.assert_close(logits, dense_logits(layer, hidden))


@forms
def test_the_gradient_of_hidden_is_the_dense_one(form: str) -> None:
    layer = head(form)
    ours, expected = states(2, 5).requires_grad_(), states(2, 5).requires_grad_()
    layer(ours).square().sum().backward()
    assert layer.bias is not None
    bias, layer.bias.grad = layer.bias.grad, None
    dense_logits(layer, expected).square().sum().backward()
    torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(bias, layer.bias.grad, rtol=1e-5, atol=1e-4)


def test_a_table_of_many_blocks_is_multiplied_block_by_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kflats.linalg._BLOCK_ELEMENTS", 1)
    layer, hidden, twin = head(), states(5).requires_grad_(), states(5).requires_grad_()
    logits, expected = layer(hidden), dense_logits(layer, twin)
    torch.testing.assert_close(logits, expected)
    logits.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(hidden.grad, twin.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer.dense_rows(), layer.codes.table())


def test_logits_in_half_precision_are_near_the_wide_ones() -> None:
    layer, hidden = head(), states(5)
    expected = layer(hidden).detach()
    logits = copy.deepcopy(layer).to(torch.bfloat16)(hidden.to(torch.bfloat16)).detach()
    assert logits.dtype == torch.bfloat16
    assert float((logits - expected).norm() / expected.norm()) < 0.03


def test_autocast_computes_logits_in_its_dtype_like_a_dense_head() -> None:
    layer, hidden = head(), states(5).requires_grad_()
    dense = layer.to_linear()
    with torch.autocast("cpu", torch.bfloat16):
        ours, expected = layer(hidden), dense(hidden)
        assert embedding()(IDS[0]).dtype == torch.float32
    assert ours.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(ours, expected, rtol=0.02, atol=0.1)
    ours.float().sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32
    torch.testing.assert_close(hidden.grad[0], dense.weight.sum(0), rtol=0.02, atol=0.2)


@forms
@pytest.mark.usefixtures("fresh_compiler")
def test_embeddings_compile_without_graph_breaks(form: str) -> None:
    layer = embedding(form)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for ids in IDS:
        assert torch.equal(compiled(ids), layer(ids))


@forms
@pytest.mark.usefixtures("fresh_compiler")
def test_heads_compile_forward_and_backward_without_graph_breaks(form: str) -> None:
    layer = head(form)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for shape in ((4,), (2, 7)):
        ours, expected = states(*shape).requires_grad_(), states(*shape).requires_grad_()
        compiled(ours).square().sum().backward()
        layer(expected).square().sum().backward()
        torch.testing.assert_close(ours.grad, expected.grad)
        assert torch.equal(compiled(ours), layer(ours))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_layers_follow_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = embedding()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(IDS[0])
    state = copy.deepcopy(layer.state_dict())
    state["scales"] *= 2
    layer.load_state_dict(state)
    torch.testing.assert_close(compiled(IDS[0]), layer(IDS[0]), rtol=0, atol=0)


def test_the_operators_pass_the_checks_of_torch() -> None:
    layer = embedding()
    tensors = (layer.coefficients, layer.bases, layer.scales, layer.books, layer.exact)
    rest = (layer.labels, layer.offsets, layer._text)
    operators: Any = torch.ops.kflats
    torch.library.opcheck(operators.lookup_codes, (IDS[1], *tensors, *rest))
    hidden = states(2, 3).requires_grad_()
    torch.library.opcheck(operators.multiply_codes, (hidden, *tensors, *rest))


def test_shared_layers_are_one_table() -> None:
    ours, tied = embedding(), head()
    with torch.no_grad():
        tied.scales.zero_()
    tied.share_with(ours)
    assert all(getattr(tied, name) is getattr(ours, name) for name in ours.FACTORS)
    assert tied.labels is ours.labels
    assert all(getattr(tied, name) is getattr(ours, name) for name in ours.SAVED_BUFFERS)
    assert [*tied.state_dict()] == ["scales", "books", "exact", "bias"]
    hidden = states(3)
    torch.testing.assert_close(tied(hidden), dense_logits(tied, hidden))
    with pytest.raises(InputError, match="cannot share"):
        head("plain").share_with(ours)


@pytest.mark.parametrize("change", ["half", "copy", "load"])
def test_shared_layers_stay_one_table(change: str) -> None:
    model = nn.ModuleList([embedding(), head()])
    model[1].share_with(model[0])  # type: ignore[operator]
    if change == "half":
        model = model.half()
    elif change == "copy":
        model = copy.deepcopy(model)
    else:
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    ours, tied = model
    assert isinstance(ours, QuantizedEmbedding)
    assert isinstance(tied, QuantizedLinear)
    assert tied.coefficients is ours.coefficients
    assert tied.labels is ours.labels
    hidden = states(3, dtype=ours.scales.dtype)
    expected = dense_logits(tied, hidden.float())
    torch.testing.assert_close(tied(hidden).float(), expected, rtol=1e-3, atol=5e-2)


class Largest(TorchFunctionMode):
    """Remembers the largest float tensor that any function returned."""

    numbers = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.is_floating_point():
            self.numbers = max(self.numbers, found.numel())
        return found


def test_a_look_up_builds_no_dense_table() -> None:
    layer = embedding()
    with Largest() as largest:
        layer(IDS[1])
    assert 0 < largest.numbers <= max(6 * D, 256 * 8, layer.books.numel())


@forms
def test_dense_modules_have_the_same_output(form: str) -> None:
    layer, tied = embedding(form, padding_idx=2).eval(), head(form)
    dense, linear = layer.to_embedding(), tied.to_linear()
    assert type(dense) is nn.Embedding
    assert (dense.padding_idx, dense.training, dense.weight.requires_grad) == (2, False, False)
    torch.testing.assert_close(dense(IDS[1]), layer(IDS[1]))
    torch.testing.assert_close(linear(states(4)), tied(states(4)))


@forms
def test_the_weight_stands_for_the_table(form: str) -> None:
    layer = embedding(form)
    assert layer.weight.shape == (N, D)
    table, hidden = layer.codes.table(), states(3)
    functional: Any = nn.functional
    torch.testing.assert_close(layer.weight[[3, -1]], table[[3, -1]])
    torch.testing.assert_close(hidden @ layer.weight.T, hidden @ table.T)
    torch.testing.assert_close(functional.embedding(IDS[0], layer.weight), table[IDS[0]])


def test_the_sizes_are_described() -> None:
    text = repr(embedding())
    assert text.startswith("QuantizedEmbedding(400, 24, bits=")
    assert "rotated, n_clusters=1, rank=24, n_exact=3" in text
    assert "plain" in repr(embedding("plain"))
    assert "bias=True" in repr(head())
