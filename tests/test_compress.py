from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kflats import (
    BudgetError,
    CompressionConfig,
    FactorizedEmbedding,
    InputError,
    ProjectiveClustering,
    compress_,
)
from tests.conftest import spectral_table, tiny_bert
from tests.test_tables import Scaled, TwoTables

HALF = CompressionConfig(compression=0.5, n_clusters=2)


def plain(rows: int = 400) -> nn.Sequential:
    embedding = nn.Embedding.from_pretrained(spectral_table(rows), freeze=False, padding_idx=1)
    return nn.Sequential(embedding, nn.Linear(24, 3))


def table_of(model: nn.Sequential) -> Tensor:
    assert isinstance(model[0], nn.Embedding)
    return model[0].weight.detach()


def factorised(module: nn.Module) -> FactorizedEmbedding:
    assert isinstance(module, FactorizedEmbedding)
    return module


def test_report_counts_what_the_model_holds() -> None:
    model = plain()
    before = sum(p.numel() * 4 for p in model.parameters())
    report = compress_(model, HALF)
    layer = factorised(model[0])
    after = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert (report.model_bytes_before, report.model_bytes_after) == (before, after)
    (table,) = report.tables
    assert table.bytes_before - table.bytes_after == before - after
    assert table.shape == layer.shape
    assert 0.5 <= table.compression < 0.55
    assert report.to_dict()["tables"][0]["compression"] == table.compression


def test_reported_error_is_that_of_the_layer() -> None:
    model = plain()
    dense = table_of(model).clone()
    report = compress_(model, CompressionConfig(compression=0.5, n_clusters=2, exact_ids=(0, 5)))
    rows = factorised(model[0])(torch.arange(400)).detach()
    assert torch.equal(rows[[0, 5]], dense[[0, 5]])
    error = float((rows - dense).norm() / dense.norm())
    assert report.tables[0].relative_error == pytest.approx(error, rel=1e-5)


def test_exact_rows_do_not_bend_the_subspaces() -> None:
    model = plain()
    table_of(model)[7] = 1e4
    config = CompressionConfig(rank=6, n_clusters=1, method="projective", exact_ids=(7,))
    with_outlier = compress_(model, config)
    assert with_outlier.tables[0].relative_error < 0.02
    rest = torch.cat([spectral_table()[:7], spectral_table()[8:]])
    expected = ProjectiveClustering(1, rank=6).fit(rest)
    basis = factorised(model[0]).bases
    torch.testing.assert_close(
        basis.T @ basis, expected.bases_[0].T @ expected.bases_[0], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("method", ["flats", "projective", "messi", "svd"])
def test_every_method_meets_the_budget(method: str) -> None:
    report = compress_(plain(), CompressionConfig(compression=0.5, method=method))
    assert report.tables[0].compression >= 0.5


def test_messi_is_the_papers_procedure() -> None:
    model = plain()
    table = table_of(model).clone()
    compress_(model, CompressionConfig(rank=5, n_clusters=3, method="messi"))
    paper = ProjectiveClustering(
        3, rank=5, init="random", n_init=10, assignment="nearest", tol=0, random_state=0
    ).fit(table)
    bases = factorised(model[0]).bases.detach().view(3, 5, 24)
    torch.testing.assert_close(bases, paper.bases_)


def test_target_size_is_kept_in_bytes() -> None:
    report = compress_(plain(), CompressionConfig(target_bytes=15_000))
    assert 13_000 < report.tables[0].bytes_after <= 15_000


def test_weights_move_the_error_to_other_rows() -> None:
    weights = torch.full((400,), 1e-3)
    weights[:40] = 1.0
    dense = spectral_table()

    def error(config: CompressionConfig) -> float:
        model = plain()
        compress_(model, config)
        rows = factorised(model[0])(torch.arange(40)).detach()
        return float((rows - dense[:40]).norm())

    plain_config = CompressionConfig(rank=6, n_clusters=2)
    assert error(CompressionConfig(rank=6, n_clusters=2, sample_weight=weights)) < 0.8 * error(
        plain_config
    )


def test_named_tables_are_replaced_and_others_left() -> None:
    model = TwoTables()
    places = model.places
    compress_(model, CompressionConfig(rank=2, n_clusters=2, modules=("words",)))
    assert isinstance(model.words, FactorizedEmbedding)
    assert model.places is places


def test_scaled_and_shared_tables_share_their_factors() -> None:
    model = TwoTables()
    model.places = Scaled(50, 8)
    model.places.weight = model.words.weight
    report = compress_(model, CompressionConfig(rank=3, n_clusters=2, modules=("words",)))
    words, places = factorised(model.words), factorised(model.places)
    ids = torch.arange(50)
    torch.testing.assert_close(places(ids), 4.0 * words(ids))
    assert places.coefficients is words.coefficients
    assert report.model_bytes_after == words.num_bytes


def test_transformers_model_computes_with_the_reconstructed_table() -> None:
    model, twin = tiny_bert(), tiny_bert()
    compress_(model, CompressionConfig(compression=0.4, n_clusters=2))
    layer = factorised(model.get_input_embeddings())
    twin.get_input_embeddings().weight.data = layer.to_embedding().weight.data
    ids = torch.randint(0, 200, (2, 9))
    torch.testing.assert_close(
        model(ids).last_hidden_state, twin(ids).last_hidden_state, rtol=1e-4, atol=1e-5
    )


def test_factors_train_inside_a_transformers_model() -> None:
    model = tiny_bert()
    compress_(model, CompressionConfig(compression=0.4, n_clusters=2))
    model(torch.randint(0, 200, (2, 9))).last_hidden_state.square().sum().backward()
    layer = factorised(model.get_input_embeddings())
    assert all(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"compression": 0.5, "n_clusters": 401}, InputError, "'0' .400, 24.*n_clusters=401"),
        ({"target_bytes": 300}, BudgetError, "while compressing '0'"),
        ({"rank": 25, "n_clusters": 2}, InputError, "rank=25 must be between 0 and"),
        ({"rank": 24, "n_clusters": 2}, InputError, "would take 9600 parameters instead of 9600"),
        ({"compression": 0.5, "exact_ids": (400,)}, InputError, "exact_ids=.* between 0 and 399"),
        (
            {"compression": 0.5, "sample_weight": torch.ones(3)},
            InputError,
            "sample_weight has shape",
        ),
        ({"compression": 0.5, "device": "abacus"}, InputError, "device='abacus'"),
    ],
)
def test_impossible_settings_name_the_table_and_change_nothing(
    config: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = plain()
    with pytest.raises(error, match=message):
        compress_(model, CompressionConfig(**config))
    assert type(model[0]) is nn.Embedding


def test_failure_on_the_second_table_leaves_the_first() -> None:
    model = TwoTables()
    model.places.weight.data[4, 4] = torch.nan
    config = CompressionConfig(rank=2, n_clusters=2, modules=("words", "places"))
    with pytest.raises(InputError, match=r"while compressing 'places'.*row 4"):
        compress_(model, config)
    assert type(model.words) is nn.Embedding


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "got no size"),
        ({"compression": 1.5}, "compression=1.5 must be between 0 and 1"),
        ({"compression": 0.4, "method": "magic"}, "method='magic' must be one of"),
        ({"compression": 0.4, "method": "svd", "n_clusters": 3}, "svd' has one subspace"),
        ({"rank": 3}, "rank=3 needs n_clusters too"),
        ({"compression": 0.4, "n_clusters": 0}, "n_clusters=0 must be at least 1"),
        ({"bits": 2, "options": {"n_clusters": 2, "levels": "uniform"}}, "n_clusters: give it to"),
    ],
)
def test_contradictory_configs_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompressionConfig(**config)


def test_model_that_is_the_embedding_itself_is_refused() -> None:
    with pytest.raises(InputError, match="the model is itself the embedding"):
        compress_(nn.Embedding(90, 8), HALF)


@pytest.mark.parametrize(
    "settings",
    [
        {"compression": 0.4},
        {"compression": 0.6, "n_clusters": 1},
        {"compression": 0.4, "method": "projective", "n_clusters": 2},
        {"compression": 0.4, "method": "projective", "n_clusters": 2, "affine": True},
        {"compression": 0.4, "method": "svd"},
        {"bits": 4.0},
        {"bits": 2.5, "exact_ids": (1,)},
    ],
)
def test_padding_adds_nothing_to_a_sum(settings: dict[str, Any]) -> None:
    model: Any = nn.Sequential(nn.Embedding(600, 24, padding_idx=5))
    with torch.no_grad():
        model[0].weight += 0.5
        model[0].weight[5] = 0.0
    report = compress_(model, CompressionConfig(**settings))
    assert not model[0](torch.tensor([5])).any()
    assert not model[0].dense_rows()[5].any()
    if "compression" in settings:
        assert report.tables[0].compression >= settings["compression"]
    else:
        assert report.tables[0].bytes_after <= settings["bits"] * 600 * 24 / 8


def test_padding_row_that_is_not_zero_costs_nothing() -> None:
    model: Any = nn.Sequential(nn.Embedding(600, 24, padding_idx=5))
    with torch.no_grad():
        model[0].weight[5] = 1.0
    report = compress_(model, CompressionConfig(bits=4.0))
    assert report.tables[0].shape.n_exact == 0
