from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kflats import FactorizedEmbedding, FactorizedLinear, FactorShape, InputError
from kflats.layers import FactorTable
from kflats.layers.resize import new_rows, resize_
from tests.layers.dense import FORMS, dense_table, filled, mixed_shape

HIDDEN = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
SHAPES = {
    "svd": FactorShape.uniform(30, 6, n_clusters=1, rank=2),
    "clusters": FactorShape.uniform(30, 6, n_clusters=3, rank=2, affine=True),
    "with stored rows": FactorShape.uniform(30, 6, n_clusters=3, rank=2, n_exact=4),
    "mixed": mixed_shape(affine=True),
    **FORMS,
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))


def fresh_rows(count: int, d: int = 6) -> Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(2))


def assert_consistent(layer: FactorTable) -> None:
    """Check that the tensors, the labels and the description fit together."""
    assert sum(p.numel() for p in layer.parameters()) == layer.shape.num_parameters
    torch.testing.assert_close(layer.dense_rows(), dense_table(layer).detach())
    again = type(layer)(layer.shape)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.dense_rows(), layer.dense_rows())


@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grown_table_keeps_old_rows_and_stores_new_ones(
    shape: FactorShape, dtype: torch.dtype
) -> None:
    layer = filled(FactorizedEmbedding(shape, dtype=dtype))
    before, added = layer.dense_rows(), fresh_rows(5).to(dtype)
    resize_([layer], 35, added)
    assert (layer.num_embeddings, layer.shape.n_exact) == (35, shape.n_exact + 5)
    assert layer.shape.n_clusters == shape.n_clusters
    assert torch.equal(layer(torch.arange(35)), torch.cat([before, added]))
    if dtype == torch.float32:
        assert_consistent(layer)


@every_shape
def test_growing_twice_is_growing_once(shape: FactorShape) -> None:
    once, twice = (filled(FactorizedEmbedding(shape)) for _ in range(2))
    added = fresh_rows(5)
    resize_([once], 35, added)
    resize_([twice], 32, added[:2])
    resize_([twice], 35, added[2:])
    assert twice.shape == once.shape
    assert torch.equal(twice.dense_rows(), once.dense_rows())


@every_shape
@pytest.mark.parametrize("size", [29, 17, 1])
def test_shrunk_table_keeps_its_first_rows(shape: FactorShape, size: int) -> None:
    layer = filled(FactorizedEmbedding(shape))
    before = layer.dense_rows()
    resize_([layer], size)
    assert layer.num_embeddings == size
    torch.testing.assert_close(layer(torch.arange(size)), before[:size])
    with pytest.raises(IndexError, match="out of range"):
        layer(torch.tensor([size]))
    assert_consistent(layer)


def test_shrinking_below_the_exact_rows_empties_their_group() -> None:
    layer = filled(FactorizedEmbedding(SHAPES["with stored rows"]))
    assert layer.labels is not None
    first_exact = int((layer.labels == 3).nonzero()[0])
    before = layer.dense_rows()
    resize_([layer], first_exact)
    assert layer.shape.n_exact == 0
    assert layer.shape.counts[-1] == 0
    assert torch.equal(layer.dense_rows(), before[:first_exact])
    resize_([layer], first_exact + 2, fresh_rows(2))
    assert layer.shape.n_exact == 2
    assert torch.equal(layer(torch.arange(first_exact, first_exact + 2)), fresh_rows(2))


def test_rows_that_were_removed_do_not_come_back() -> None:
    layer = filled(FactorizedEmbedding(SHAPES["clusters"]))
    resize_([layer], 10)
    resize_([layer], 30, fresh_rows(20))
    assert torch.equal(layer(torch.arange(10, 30)), fresh_rows(20))


@pytest.mark.parametrize("name", ["clusters", "echelon, affine"])
def test_all_readers_and_the_bias_of_a_head_follow(name: str) -> None:
    shape = SHAPES[name]
    words, places = filled(FactorizedEmbedding(shape)), FactorizedEmbedding(shape)
    head = filled(FactorizedLinear(shape, bias=True), seed=1)
    assert head.bias is not None
    bias = head.bias.detach().clone()
    places.share_with(words)
    head.share_with(words)
    readers: list[FactorTable] = [words, places, head]
    resize_(readers, 33, fresh_rows(3))
    for reader in readers:
        assert reader.shape.num_embeddings == 33
        assert reader.coefficients is words.coefficients
        assert reader.bases is words.bases
    assert head.out_features == len(head.bias) == 33
    assert torch.equal(head.bias[:30], bias)
    torch.testing.assert_close(head.bias[30:], bias.mean().expand(3))
    assert torch.equal(places(torch.arange(33)), words.dense_rows())
    expected = HIDDEN @ words.dense_rows().T + head.bias
    torch.testing.assert_close(head(HIDDEN), expected)
    assert "labels" in words.state_dict()
    assert not {"labels", "places"} & head.state_dict().keys()
    resize_(readers, 12)
    assert torch.equal(head.bias, bias[:12])
    torch.testing.assert_close(head(HIDDEN), expected[:, :12])


def test_head_without_bias_grows() -> None:
    head = filled(FactorizedLinear(SHAPES["mixed"]))
    before = head(HIDDEN)
    resize_([head], 31, fresh_rows(1))
    torch.testing.assert_close(head(HIDDEN)[:, :30], before)
    torch.testing.assert_close(head(HIDDEN)[:, 30:], HIDDEN @ fresh_rows(1).T)
    assert head.bias is None


@pytest.mark.parametrize(
    ("padding_idx", "size", "after"), [(3, 20, 3), (25, 20, None), (-1, 33, 29)]
)
def test_padding_stays_with_its_row(padding_idx: int, size: int, after: int | None) -> None:
    layer = filled(FactorizedEmbedding(SHAPES["clusters"], padding_idx=padding_idx))
    resize_([layer], size, fresh_rows(3) if size > 30 else None)
    assert layer.padding_idx == after


@pytest.mark.parametrize("trains", [False, True])
def test_training_goes_on(trains: bool) -> None:
    layer = filled(FactorizedLinear(SHAPES["clusters"], bias=True)).requires_grad_(trains)
    resize_([layer], 33, fresh_rows(3).requires_grad_())
    assert {p.requires_grad for p in layer.parameters()} == {trains}
    assert all(p.is_leaf for p in layer.parameters())
    if trains:
        layer(HIDDEN).square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())


def test_labels_widen_when_the_stored_rows_are_group_257() -> None:
    layer = filled(FactorizedEmbedding(FactorShape.uniform(600, 4, n_clusters=256, rank=1)))
    before = layer.dense_rows()
    assert layer.labels is not None
    assert layer.labels.dtype == torch.uint8
    resize_([layer], 601, fresh_rows(1, 4))
    assert layer.labels.dtype == torch.int16
    assert int(layer.labels[-1]) == 256
    assert torch.equal(layer.dense_rows(), torch.cat([before, fresh_rows(1, 4)]))


@pytest.mark.parametrize(
    ("size", "added"),
    [
        (0, None),
        (-3, None),
        (32, None),
        (32, fresh_rows(3)),
        (20, fresh_rows(3)),
        (30, fresh_rows(1)),
        (32, fresh_rows(2, 7)),
        (32, fresh_rows(1)[0, :2]),
    ],
    ids=["none", "negative", "no rows", "too many", "for fewer", "for the same", "wide", "flat"],
)
@pytest.mark.parametrize("shape", ["clusters", "with stored rows"])
def test_wrong_sizes_are_refused_and_change_nothing(
    shape: str, size: int, added: Tensor | None
) -> None:
    layer = filled(FactorizedEmbedding(SHAPES[shape]))
    before = layer.dense_rows()
    with pytest.raises(InputError, match=f"30 rows cannot be resized to {size} with"):
        resize_([layer], size, added)
    assert layer.shape == SHAPES[shape]
    assert torch.equal(layer.dense_rows(), before)


@pytest.mark.parametrize("shape", ["clusters", "with stored rows"])
def test_added_rows_take_the_dtype_of_the_table(shape: str) -> None:
    layer = filled(FactorizedEmbedding(SHAPES[shape], dtype=torch.bfloat16))
    resize_([layer], 32, fresh_rows(2))
    assert layer.coefficients.dtype == torch.bfloat16
    assert torch.equal(layer(torch.tensor([30, 31])), fresh_rows(2).bfloat16())


@every_shape
def test_new_rows_are_drawn_around_the_mean_of_the_table(shape: FactorShape) -> None:
    layer = filled(FactorizedEmbedding(shape)).double()
    torch.manual_seed(0)
    rows = new_rows(layer, 4000)
    torch.manual_seed(0)
    assert torch.equal(rows, new_rows(layer, 4000))
    table = layer.dense_rows()
    torch.testing.assert_close(rows.mean(0), table.mean(0), rtol=0, atol=1e-5)
    expected = 1e-9 * torch.cov(table.T, correction=0)
    torch.testing.assert_close(
        torch.cov(rows.T), expected, rtol=0, atol=0.1 * float(expected.max())
    )


def test_new_rows_may_be_initialised_by_the_model() -> None:
    def init(module: nn.Module) -> None:
        assert isinstance(module, nn.Embedding)
        module.weight.data.fill_(0.25)

    layer = filled(FactorizedEmbedding(SHAPES["clusters"], dtype=torch.bfloat16))
    rows = new_rows(layer, 3, init)
    assert torch.equal(rows, torch.full((3, 6), 0.25, dtype=torch.bfloat16))
    assert not rows.requires_grad
    assert new_rows(layer, 2).dtype == torch.bfloat16
