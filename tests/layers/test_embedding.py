from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kflats import Factorization, FactorizedEmbedding, FactorShape, InputError
from kflats.errors import UnsupportedModelError
from tests.conftest import spectral_table

KINDS = {
    "svd": {"n_clusters": 1, "affine": False},
    "linear": {"n_clusters": 3, "affine": False},
    "affine": {"n_clusters": 3, "affine": True},
}


def make(
    kind: str = "linear",
    dtype: torch.dtype = torch.float32,
    padding_idx: int | None = None,
    exact: tuple[int, ...] = (),
) -> tuple[FactorizedEmbedding, Tensor]:
    """Return a layer and the dense table it must behave like."""
    dense = nn.Embedding.from_pretrained(
        spectral_table().to(dtype), freeze=False, padding_idx=padding_idx
    )
    settings: dict[str, Any] = KINDS[kind]
    factors = Factorization.projective(dense.weight, rank=8, **settings)
    layer = FactorizedEmbedding.from_embedding(dense, factors, exact_ids=torch.tensor(exact).long())
    table = factors.reconstruct()
    for index in exact:
        table[index] = dense.weight.detach()[index]
    return layer, table


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "ids",
    [torch.tensor(7), torch.tensor([]).long(), torch.randint(0, 400, (3, 5, 2))],
    ids=["scalar", "empty", "three axes"],
)
def test_rows_are_those_of_the_factorisation(kind: str, ids: Tensor) -> None:
    layer, table = make(kind, exact=(0, 7, 399))
    result = layer(ids)
    assert result.shape == (*ids.shape, 24)
    torch.testing.assert_close(result, table[ids])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype(kind: str, dtype: torch.dtype) -> None:
    layer, table = make(kind, dtype)
    ids = torch.arange(400).flip(0)
    assert layer(ids).dtype == dtype
    # One rounding of the product, another of the sum with the mean.
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(layer(ids), table[ids], rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_both_integer_types_of_ids(ids_dtype: torch.dtype) -> None:
    layer, table = make(exact=(3,))
    ids = torch.tensor([3, 9, 3], dtype=ids_dtype)
    torch.testing.assert_close(layer(ids), table[ids.long()])


@pytest.mark.parametrize("bad", [-1, 400])
def test_ids_out_of_range_raise(bad: int) -> None:
    layer, _ = make(exact=(3,))
    with pytest.raises(IndexError, match="out of range"):
        layer(torch.tensor([bad]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding_idx", [None, 0, 5])
def test_gradients_equal_those_of_dense_arithmetic(kind: str, padding_idx: int | None) -> None:
    layer, _ = make(kind, padding_idx=padding_idx, exact=(5, 6))
    layer = layer.double()
    ids = torch.tensor([[0, 1, 1, 5], [6, 399, 2, 0]])
    target = torch.randn(2, 4, 24, dtype=torch.float64)
    (layer(ids) * target).sum().backward()

    twin = copy.deepcopy(layer)
    twin.zero_grad()
    labels = torch.zeros(400).long() if twin.labels is None else twin.labels.long()
    table = torch.einsum("nr,nrd->nd", twin.coefficients, twin.bases[labels])
    if twin.means is not None:
        table = table + twin.means[labels]
    assert twin.exact_rows is not None
    table = table.index_put((torch.tensor([5, 6]),), twin.exact_rows)
    rows = table[ids]
    if padding_idx is not None:
        rows = torch.where((ids == padding_idx)[..., None], rows.detach(), rows)
    (rows * target).sum().backward()
    for (name, ours), (_, expected) in zip(
        layer.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert ours.grad is not None, name
        torch.testing.assert_close(ours.grad, expected.grad, msg=name)
        assert bool(ours.grad.any()), name


def test_gradcheck() -> None:
    shape = FactorShape(num_embeddings=9, embedding_dim=4, n_clusters=2, rank=2, affine=True)
    layer = FactorizedEmbedding(shape, dtype=torch.float64)
    assert layer.labels is not None
    layer.labels.copy_(torch.arange(9) % 2)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(p.shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for p in layer.parameters()
    ]
    names = [name for name, _ in layer.named_parameters()]
    ids = torch.tensor([0, 3, 3, 8])

    def rows(*values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        result: Tensor = torch.func.functional_call(layer, state, (ids,))
        return result

    assert torch.autograd.gradcheck(rows, inputs)


def test_operator_follows_the_rules_of_pytorch() -> None:
    layer, _ = make("affine")
    torch.library.opcheck(
        torch.ops.kflats.lookup.default,
        (
            torch.tensor([[1, 2], [2, 9]]),
            layer.coefficients,
            layer.bases,
            layer.labels,
            layer.means,
            -1,
        ),
    )


def test_frozen_parts_get_no_gradient() -> None:
    layer, _ = make()
    layer.coefficients.requires_grad_(False)
    layer(torch.tensor([1, 2])).sum().backward()
    assert layer.coefficients.grad is None
    assert layer.bases.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_graph_breaks(kind: str) -> None:
    layer, table = make(kind, exact=(2,), padding_idx=0)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for shape in [(4,), (2, 7)]:
        ids = torch.randint(0, 400, shape)
        torch.testing.assert_close(compiled(ids), table[ids])
    compiled(torch.tensor([1, 2])).sum().backward()
    assert layer.bases.grad is not None


@pytest.mark.slow
def test_compiles_with_inductor() -> None:
    layer, table = make()
    compiled = torch.compile(layer, fullgraph=True)
    ids = torch.randint(0, 400, (5,))
    torch.testing.assert_close(compiled(ids), table[ids])


@pytest.mark.parametrize("kind", KINDS)
def test_deepcopy_and_state_dict_round_trip(kind: str) -> None:
    layer, _ = make(kind, exact=(1, 2))
    ids = torch.arange(400)
    assert torch.equal(copy.deepcopy(layer)(ids), layer(ids))
    fresh = FactorizedEmbedding(layer.shape)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(ids), layer(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_stores_what_the_shape_says(kind: str) -> None:
    layer, _ = make(kind, torch.float16, exact=(1, 2))
    assert sum(p.numel() for p in layer.parameters()) == layer.shape.num_parameters
    stored = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    assert stored == layer.num_bytes


def test_to_embedding_gives_the_same_rows() -> None:
    layer, _ = make("affine", padding_idx=4, exact=(4,))
    layer.scale = 3.0
    dense = layer.to_embedding()
    ids = torch.randint(0, 400, (3, 5))
    assert type(dense) is nn.Embedding
    assert dense.padding_idx == 4
    assert dense.weight.requires_grad
    torch.testing.assert_close(dense(ids), layer(ids))


def test_training_state_is_carried_over() -> None:
    dense = nn.Embedding(400, 24).requires_grad_(False).eval()
    layer = FactorizedEmbedding.from_embedding(dense, Factorization.svd(dense.weight, 3))
    assert not any(p.requires_grad for p in layer.parameters())
    assert not layer.training


@pytest.mark.parametrize(
    "option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}]
)
def test_options_that_factors_cannot_keep_are_refused(option: dict[str, Any]) -> None:
    dense = nn.Embedding(40, 8, **option)
    with pytest.raises(InputError, match=f"{next(iter(option))}="):
        FactorizedEmbedding.from_embedding(dense, Factorization.svd(dense.weight, 3))


def test_factors_of_another_table_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(40, 8\) and the factorisation \(400, 24\)"):
        FactorizedEmbedding.from_embedding(
            nn.Embedding(40, 8), Factorization.svd(spectral_table(), 3)
        )


def test_negative_padding_counts_from_the_end() -> None:
    shape = FactorShape(num_embeddings=9, embedding_dim=4, n_clusters=1, rank=2)
    assert FactorizedEmbedding(shape, padding_idx=-1).padding_idx == 8
    with pytest.raises(InputError, match="padding_idx=9 must be within num_embeddings=9"):
        FactorizedEmbedding(shape, padding_idx=9)


def test_weight_answers_what_it_is_and_refuses_values() -> None:
    layer, _ = make(dtype=torch.bfloat16)
    assert (layer.weight.dtype, layer.weight.shape) == (torch.bfloat16, (400, 24))
    assert layer.weight.device == layer.bases.device
    view: Any = layer.weight
    reads: list[Callable[[], Any]] = [
        lambda: view[3],
        lambda: view.data,
        lambda: nn.functional.linear(torch.zeros(1, 24), view),
    ]
    for read in reads:
        with pytest.raises(UnsupportedModelError, match=r"to_embedding\(\)\.weight"):
            read()


def test_sharing_layers_have_one_set_of_factors() -> None:
    layer, _ = make(exact=(1,))
    alias = FactorizedEmbedding(layer.shape)
    alias.share_with(layer)
    assert {id(p) for p in alias.parameters()} == {id(p) for p in layer.parameters()}
    assert torch.equal(alias(torch.arange(400)), layer(torch.arange(400)))
    assert "labels" not in alias.state_dict()
