from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kflats import Factorization, FactorizedEmbedding, FactorShape, InputError
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
    factors = factors_of(dense.weight, kind)
    layer = FactorizedEmbedding.from_embedding(dense, factors, exact_ids=torch.tensor(exact).long())
    table = factors.reconstruct()
    for index in exact:
        table[index] = dense.weight.detach()[index]
    return layer, table


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor(7),
        torch.tensor([]).long(),
        torch.arange(30).view(3, 5, 2) * 7,
        (torch.arange(12) * 31).view(4, 3).T,
        torch.tensor([[399]]).expand(2, 6),
    ],
    ids=["scalar", "empty", "three axes", "transposed", "expanded"],
)
def test_rows_are_those_of_the_factorisation(kind: str, ids: Tensor) -> None:
    layer, table = make(kind, exact=(0, 7, 399))
    result = layer(ids)
    assert result.shape == (*ids.shape, 24)
    torch.testing.assert_close(result, table[ids])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(kind: str, dtype: torch.dtype) -> None:
    layer, _ = make(kind, dtype, exact=(3, 20))
    ids = torch.arange(400).flip(0)
    table = dense_table(wide_copy(layer))
    assert layer(ids).dtype == dtype
    torch.testing.assert_close(layer(ids).double(), table[ids], rtol=0, atol=rounding(dtype, table))


@pytest.mark.parametrize("kind", KINDS)
def test_exact_rows_are_kept_to_the_bit(kind: str) -> None:
    layer, table = make(kind, torch.float16, exact=(399, 7, 0, 7))
    ids = torch.tensor([0, 7, 399])
    assert layer.shape.n_exact == 3
    assert torch.equal(layer(ids), table[ids])
    assert torch.equal(layer.group_coefficients(-1), table[ids])


@pytest.mark.parametrize("bad", [-1, 400])
def test_exact_ids_outside_of_the_table_are_refused(bad: int) -> None:
    with pytest.raises(InputError, match="must be between 0 and 399"):
        make(exact=(bad, 3))


def test_table_of_exact_rows_only() -> None:
    shape = FactorShape(
        num_embeddings=5, embedding_dim=3, counts=(5,), ranks=(3,), basis_ids=(-1,), affine=True
    )
    layer = filled(FactorizedEmbedding(shape))
    layer(torch.tensor([1, 1, 4])).sum().backward()
    assert layer.coefficients.grad is not None
    assert layer.coefficients.grad.view(5, 3)[:, 0].tolist() == [0, 2, 0, 0, 1]
    assert torch.equal(layer.dense_rows(), layer.coefficients.view(5, 3))


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


@pytest.mark.parametrize("bad", [-1, 30])
def test_ids_out_of_range_raise_without_coefficients(bad: int) -> None:
    layer = FactorizedEmbedding(FORMS["rank 0"])
    assert layer(torch.tensor([0, 29])).tolist() == [[0] * 6] * 2
    with pytest.raises(IndexError, match="out of range"):
        layer(torch.tensor([3, bad]))


def test_rows_of_rank_zero_are_the_mean() -> None:
    layer = filled(FactorizedEmbedding(FORMS["means alone"]))
    assert layer.labels is not None
    assert layer.means is not None
    assert torch.equal(layer(torch.arange(30)), layer.means[layer.labels.long()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding_idx", [None, 0, 5])
def test_gradients_equal_those_of_dense_arithmetic(kind: str, padding_idx: int | None) -> None:
    layer, _ = make(kind, padding_idx=padding_idx, exact=(5, 6))
    layer = layer.double()
    ids = torch.tensor([[0, 1, 1, 5], [6, 399, 2, 0]])
    target = torch.randn(2, 4, 24, dtype=torch.float64)
    (layer(ids) * target).sum().backward()

    twin = wide_copy(layer)
    rows = dense_table(twin)[ids]
    if padding_idx is not None:
        rows = torch.where((ids == padding_idx)[..., None], rows.detach(), rows)
    (rows * target).sum().backward()
    assert_same_gradients(layer, twin)


@pytest.mark.parametrize("echelon", [False, True], ids=["plain", "echelon"])
def test_gradcheck(echelon: bool) -> None:
    shape = FactorShape.uniform(9, 4, n_clusters=2, rank=2, affine=True, n_exact=2, echelon=echelon)
    layer = filled(FactorizedEmbedding(shape, dtype=torch.float64))
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


@pytest.mark.parametrize("form", [None, "ragged", "echelon, affine, exact rows"])
def test_operator_follows_the_rules_of_pytorch(form: str | None) -> None:
    layer = filled(FactorizedEmbedding(FORMS[form])) if form else make("affine", exact=(2, 5))[0]
    torch.library.opcheck(
        torch.ops.kflats.lookup.default,
        (
            torch.tensor([[1, 2], [2, 9]]),
            layer.coefficients,
            layer.bases,
            layer.places,
            layer.means,
            layer.columns,
            *layer.sizes,
            -1,
        ),
    )


def test_frozen_parts_get_no_gradient() -> None:
    layer, _ = make()
    layer.coefficients.requires_grad_(False)
    layer(torch.tensor([1, 2])).sum().backward()
    assert layer.coefficients.grad is None
    assert layer.bases.grad is not None


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
    shape = FactorShape.uniform(9, 4, n_clusters=1, rank=2)
    assert FactorizedEmbedding(shape, padding_idx=-1).padding_idx == 8
    with pytest.raises(InputError, match="padding_idx=9 must be within num_embeddings=9"):
        FactorizedEmbedding(shape, padding_idx=9)


def test_print_shows_the_sizes() -> None:
    layer, _ = make("affine", padding_idx=4, exact=(4,))
    layer.scale = 3.0
    sizes = "400, 24, n_clusters=3, rank=8, affine, n_exact=1, padding_idx=4, scale=3"
    assert repr(layer) == f"FactorizedEmbedding({sizes})"
