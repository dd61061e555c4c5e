from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from kflats import (
    Factorization,
    FactorizedEmbedding,
    FactorizedLinear,
    FactorShape,
    InputError,
    set_trainable,
)
from kflats.layers import FactorTable
from kflats.layers.stored import FILE_NAMES
from tests.layers.dense import FORMS, dense_table, filled, mixed_shape, pivots_of

SHAPES = {
    "svd": FactorShape.uniform(30, 6, n_clusters=1, rank=2),
    "linear": FactorShape.uniform(30, 6, n_clusters=3, rank=2),
    "affine with exact rows": FactorShape.uniform(
        30, 6, n_clusters=3, rank=2, affine=True, n_exact=4
    ),
    "mixed": mixed_shape(affine=True),
    **FORMS,
}
HIDDEN = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
IDS = torch.arange(30)

both_layers = pytest.mark.parametrize("layer_class", [FactorizedEmbedding, FactorizedLinear])
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))


class Tied(nn.Module):
    """An embedding and a head on one table, in either order."""

    def __init__(self, shape: FactorShape, head_first: bool = False) -> None:
        super().__init__()
        embedding, head = FactorizedEmbedding(shape), FactorizedLinear(shape)
        parts = {"head": head, "words": embedding} if head_first else {"words": embedding}
        for name, part in parts.items():
            self.add_module(name, part)
        self.words = embedding
        self.head = head
        head.share_with(embedding)


@both_layers
@every_shape
def test_stores_what_the_shape_says(layer_class: type[FactorTable], shape: FactorShape) -> None:
    layer = layer_class(shape, dtype=torch.float16)
    assert sum(p.numel() for p in layer.parameters()) == shape.num_parameters
    stored = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    assert stored == layer.num_bytes == shape.num_bytes(torch.float16)


@both_layers
@every_shape
def test_dense_rows_are_the_table(layer_class: type[FactorTable], shape: FactorShape) -> None:
    layer = filled(layer_class(shape))
    table = layer.dense_rows()
    assert not table.requires_grad
    torch.testing.assert_close(table, dense_table(layer).detach())


@both_layers
@every_shape
def test_state_dict_round_trip_without_pickle(
    layer_class: type[FactorTable], shape: FactorShape
) -> None:
    layer, fresh = filled(layer_class(shape)), layer_class(shape)
    fresh.load_state_dict(load(save(layer.state_dict())))
    assert torch.equal(fresh.rows(IDS), layer.rows(IDS))
    assert torch.equal(fresh.product(HIDDEN), layer.product(HIDDEN))


def test_state_dict_of_a_file_is_understood() -> None:
    layer, fresh = (filled(FactorizedEmbedding(SHAPES["linear"]), seed) for seed in (0, 1))
    state = {FILE_NAMES.get(key, key): tensor for key, tensor in layer.state_dict().items()}
    assert "weight" in state
    fresh.load_state_dict(state)
    assert torch.equal(fresh(IDS), layer(IDS))
    assert "weight" in state


@both_layers
@every_shape
def test_deepcopy_is_equal_and_independent(
    layer_class: type[FactorTable], shape: FactorShape
) -> None:
    layer = filled(layer_class(shape))
    before, twin = layer.rows(IDS), copy.deepcopy(layer)
    assert torch.equal(twin.rows(IDS), before)
    for tensor in (*twin.parameters(), *twin.buffers()):
        tensor.data.zero_()
    assert torch.equal(layer.rows(IDS), before)


@pytest.mark.parametrize("name", ["bases", "means"])
def test_training_one_factor_keeps_the_form(name: str) -> None:
    layer = filled(FactorizedEmbedding(FORMS["echelon, affine"]))
    before = layer.dense_rows()
    set_trainable(layer, [name])
    assert [each for each, p in layer.named_parameters() if p.requires_grad] == [name]
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.5)
    layer(IDS).square().sum().backward()
    optimizer.step()
    changed = layer.dense_rows() != before
    assert layer.labels is not None
    for basis in range(3):
        pivots = pivots_of(layer, basis)
        assert not changed[layer.labels == basis][:, pivots].any()
        assert torch.equal(layer.basis(basis)[:, pivots], torch.eye(len(pivots)))
    assert changed.any()


def test_group_coefficients_are_views() -> None:
    layer = filled(FactorizedEmbedding(mixed_shape()))
    assert layer.labels is not None
    sizes = [tuple(layer.group_coefficients(group).shape) for group in range(4)]
    assert sizes == [(9, 4), (8, 2), (7, 3), (6, 6)]
    layer.group_coefficients(3).data[0] = 7.0
    first = int((layer.labels == 3).nonzero()[0])
    assert layer(torch.tensor(first)).tolist() == [7.0] * 6


def hand_made(affine: bool = True) -> FactorizedEmbedding:
    """Return two bases of 10 columns, with pivots 1, 9 and 8, and one row each."""
    shape = FactorShape(
        num_embeddings=2,
        embedding_dim=10,
        counts=(1, 1),
        ranks=(2, 1),
        basis_ids=(0, 1),
        affine=affine,
        echelon=True,
    )
    layer = FactorizedEmbedding(shape)
    state = {
        "coefficients": torch.tensor([2.0, 3.0, 5.0]),
        "bases": torch.cat([torch.arange(8.0), 10 + torch.arange(8.0), 100 + torch.arange(9.0)]),
        "labels": torch.tensor([1, 0], dtype=torch.uint8),
        "pivots": torch.tensor([[0b10, 0b10], [0, 1]], dtype=torch.uint8),
    }
    means = {"means": torch.cat([torch.full((8,), 0.5), torch.full((9,), 0.25)])}
    layer.load_state_dict(state | means if affine else state)
    return layer


def test_pivots_and_columns_by_hand() -> None:
    layer = hand_made()
    assert layer.columns is not None
    assert layer.columns.dtype == torch.int32
    assert layer.columns.tolist() == [
        [2, 0, 3, 4, 5, 6, 7, 8, 9, 1],
        [1, 2, 3, 4, 5, 6, 7, 8, 0, 9],
    ]
    rows = layer(torch.tensor([1, 0])).tolist()
    # 2 * the first row and 3 * the second: 30 + 5 * place, and the mean; 2 and 3 at the pivots.
    assert rows[0] == [30.5, 2.0, 35.5, 40.5, 45.5, 50.5, 55.5, 60.5, 65.5, 3.0]
    assert rows[1] == [500.25 + 5 * c for c in range(8)] + [5.0, 540.25]


def test_basis_and_mean_have_all_columns() -> None:
    layer = hand_made()
    assert layer.basis(0).tolist() == [
        [0, 1, 1, 2, 3, 4, 5, 6, 7, 0],
        [10, 0, 11, 12, 13, 14, 15, 16, 17, 1],
    ]
    assert layer.basis(1).tolist() == [[100, 101, 102, 103, 104, 105, 106, 107, 1, 108]]
    assert layer.mean(0).tolist() == [0.5, 0, *[0.5] * 7, 0]
    assert layer.mean(1).tolist() == [*[0.25] * 8, 0, 0.25]
    assert hand_made(affine=False).mean(1).tolist() == [0] * 10


@every_shape
def test_bases_and_means_give_the_rows(shape: FactorShape) -> None:
    layer = filled(FactorizedEmbedding(shape))
    labels = torch.zeros(30, dtype=torch.uint8) if layer.labels is None else layer.labels
    for number, (rank, basis) in enumerate(zip(shape.ranks, shape.basis_ids, strict=True)):
        if basis >= 0:
            expected = layer.group_coefficients(number) @ layer.basis(basis)[:rank]
            rows = layer.dense_rows()[labels == number]
            torch.testing.assert_close(rows, expected + layer.mean(basis))


def test_pivot_columns_hold_the_coefficients_to_the_bit() -> None:
    layer = filled(FactorizedEmbedding(FORMS["echelon, affine"], dtype=torch.bfloat16))
    assert layer.labels is not None
    for group in range(3):
        rows = layer.dense_rows()[layer.labels == group]
        assert torch.equal(rows[:, pivots_of(layer, group)], layer.group_coefficients(group))


def test_factors_in_echelon_form_lose_nothing_but_the_identity() -> None:
    table = torch.randn(90, 10, generator=torch.Generator().manual_seed(0))
    factors = Factorization.projective(table, 3, 4, affine=True).in_echelon_form(table)
    layer = FactorizedEmbedding.from_factorization(factors)
    assert layer.shape == factors.shape
    assert layer.shape.echelon
    torch.testing.assert_close(layer.dense_rows(), factors.reconstruct())
    for cluster in range(3):
        assert torch.equal(layer.basis(cluster), factors.bases[cluster])
        assert torch.equal(layer.mean(cluster), factors.means[cluster])  # type: ignore[index]


@pytest.mark.parametrize("echelon", [False, True], ids=["plain", "echelon"])
def test_exact_rows_leave_clusters_of_any_rank(echelon: bool) -> None:
    factors = ragged_factors(echelon)
    ids = torch.tensor([0, 1, 2, 11])
    rows = torch.arange(24.0).view(4, 6)
    layer = FactorizedEmbedding.from_factorization(factors, exact=(ids, rows))
    assert layer.shape.counts == (0, 8, 4)
    assert layer.shape.ranks == (2, 0, 6)
    assert layer.shape.echelon == echelon
    expected = factors.reconstruct()
    expected[ids] = rows
    torch.testing.assert_close(layer.dense_rows(), expected)
    torch.testing.assert_close(layer.basis(0), factors.bases[0])


def ragged_factors(echelon: bool) -> Factorization:
    """Return 3 rows on a plane and 9 at a point."""
    labels = torch.tensor([0, 0, 0] + [1] * 9)
    generator = torch.Generator().manual_seed(0)
    bases = torch.randn(2, 2, 6, generator=generator)
    coefficients = torch.randn(12, 2, generator=generator)
    means = torch.randn(2, 6, generator=generator)
    pivots = torch.zeros(2, 6, dtype=torch.bool)
    pivots[0, [2, 5]] = True
    bases[1], coefficients[3:] = 0.0, 0.0
    if echelon:
        bases[0][:, pivots[0]] = torch.eye(2)
        means[pivots] = 0.0
    return Factorization(
        coefficients=coefficients,
        bases=bases,
        labels=labels,
        means=means,
        squared_errors=torch.zeros(2, dtype=torch.float64),
        squared_norms=torch.ones(2, dtype=torch.float64),
        ranks=(2, 0),
        pivots=pivots if echelon else None,
    )


def test_sharing_layers_have_one_set_of_factors() -> None:
    model = Tied(SHAPES["linear"])
    filled(model.words)
    model.head.index_()
    names = {name for name, _ in model.named_parameters()}
    assert names == {"words.coefficients", "words.bases"}
    torch.testing.assert_close(model.head(HIDDEN), HIDDEN @ model.words.dense_rows().T)
    assert "labels" not in model.head.state_dict()


def test_former_reader_owns_the_table_after_own() -> None:
    model = Tied(SHAPES["linear"])
    model.head.own_()
    assert not model.head.is_shared
    assert "labels" in model.head.state_dict()


def test_deepcopy_keeps_factors_shared() -> None:
    model = copy.deepcopy(Tied(SHAPES["affine with exact rows"]))
    assert model.head.coefficients is model.words.coefficients
    assert model.head.means is model.words.means
    assert model.head.labels is model.words.labels


def test_sharing_layers_have_one_set_of_pivots() -> None:
    model = copy.deepcopy(Tied(FORMS["echelon, affine"]))
    filled(model.words)
    assert model.head.pivots is model.words.pivots
    assert model.head.columns is model.words.columns
    torch.testing.assert_close(model.head(HIDDEN), HIDDEN @ model.words.dense_rows().T)
    assert "words.pivots" in model.state_dict()
    assert not {"pivots", "columns"} & model.head.state_dict().keys()
    model.head.own_()
    assert "pivots" in model.head.state_dict()
    assert "columns" not in model.head.state_dict()


@pytest.mark.parametrize("shape", ["linear", "echelon, affine, exact rows"])
@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
@pytest.mark.parametrize("head_first", [False, True], ids=["embedding first", "head first"])
def test_loading_a_state_dict_fills_all_readers(head_first: bool, assign: bool, shape: str) -> None:
    model, fresh = Tied(SHAPES[shape]), Tied(SHAPES[shape], head_first)
    filled(model.words)
    fresh.load_state_dict(model.state_dict(), assign=assign)
    table = model.words.dense_rows()
    assert torch.equal(fresh.words(IDS), table)
    torch.testing.assert_close(fresh.head(HIDDEN), HIDDEN @ table.T)


def test_other_shapes_are_not_shared() -> None:
    layer = FactorizedEmbedding(SHAPES["linear"])
    with pytest.raises(InputError, match="cannot share the factors of"):
        layer.share_with(FactorizedEmbedding(SHAPES["mixed"]))


@pytest.mark.parametrize("label", [0, 200])
def test_labels_that_do_not_fit_the_shape_are_refused(label: int) -> None:
    layer = FactorizedEmbedding(SHAPES["linear"])
    wrong = layer.state_dict()
    wrong["labels"] = torch.full((30,), label, dtype=torch.uint8)
    with pytest.raises(InputError, match="labels and description do not belong together"):
        layer.load_state_dict(wrong)


@pytest.mark.parametrize(
    ("pivots", "message"),
    [
        ([[2, 2], [0, 0]], r"\(kflats_pivots\) mark 0 columns of basis 1, .* with rank 1"),
        ([[7, 0], [0, 1]], r"\(kflats_pivots\) mark 3 columns of basis 0, .* with rank 2"),
        ([[2, 130], [0, 1]], r"\(kflats_pivots\) mark a column beyond embedding_dim=10"),
    ],
    ids=["too few", "too many", "beyond the columns"],
)
def test_pivots_that_do_not_fit_the_shape_are_refused(
    pivots: list[list[int]], message: str
) -> None:
    layer = hand_made()
    wrong = layer.state_dict() | {"pivots": torch.tensor(pivots, dtype=torch.uint8)}
    with pytest.raises(InputError, match=message):
        layer.load_state_dict(wrong)


@every_shape
def test_meta_layers_have_sizes_and_no_storage(shape: FactorShape) -> None:
    layer = FactorizedEmbedding(shape, device="meta")
    assert layer(torch.zeros(2, 3, dtype=torch.int64, device="meta")).shape == (2, 3, 6)
    real = filled(FactorizedEmbedding(shape))
    layer.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(layer(IDS), real(IDS))


def test_meta_heads_have_sizes() -> None:
    layer = FactorizedLinear(SHAPES["linear"], bias=True, device="meta")
    assert layer(HIDDEN.to("meta")).shape == (5, 30)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ("echelon, affine", "30, 6, n_clusters=3, rank=0..3, affine, echelon, bias=False"),
        ("svd", "30, 6, n_clusters=1, rank=2, bias=False"),
        ("affine with exact rows", "30, 6, n_clusters=3, rank=2, affine, n_exact=4, bias=False"),
        ("mixed", "30, 6, n_clusters=2, rank=3..4, affine, n_exact=6, bias=False"),
    ],
)
def test_print_shows_the_sizes(shape: str, text: str) -> None:
    assert repr(FactorizedLinear(SHAPES[shape])) == f"FactorizedLinear({text})"
