from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from kflats import CompressionConfig, compress_
from kflats.errors import BudgetError, InputError
from kflats.planning import plan
from kflats.planning.candidates import Candidates
from kflats.planning.plain import plain_config
from kflats.planning.vectors import product_quantized, residual_quantized


def model_of(rows: torch.Tensor) -> nn.Module:
    return nn.Sequential(nn.Embedding.from_pretrained(rows.clone(), freeze=False))


def weight_of(model: Any) -> torch.Tensor:
    weight: torch.Tensor = model[0].weight.detach()
    return weight


def noise(n: int = 600, d: int = 32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def correlated() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(32, 32, generator=generator) * torch.linspace(3, 0.02, 32)[:, None]
    return torch.randn(1500, 32, generator=generator) @ mixing


def test_chosen_plan_gives_the_bytes_and_the_error_it_promised() -> None:
    rows = correlated()
    model = model_of(rows)
    found = plan(model, CompressionConfig(bits=3.5), everything=False)
    (report,) = compress_(model, found.config).tables
    assert report.bytes_after == found.chosen.num_bytes <= 3.5 * rows.numel() / 8
    candidates = Candidates(rows, CompressionConfig(bits=3.5))
    layer: Any = model
    again = candidates.error(layer(torch.arange(len(rows))))
    assert again == pytest.approx(found.chosen.error, rel=1e-5)


def test_chosen_plan_has_the_least_error_of_all_that_can_be_saved() -> None:
    found = plan(model_of(correlated()), CompressionConfig(bits=4.0))
    fitting = [row for row in found.rows if row.can_be_saved]
    assert found.chosen.error == min(row.error for row in fitting)
    assert {"SVD", "flats", "codes, one rotation"} <= {row.name for row in found.rows}


def test_rotation_wins_on_correlated_columns_and_columns_on_noise() -> None:
    turned = plan(model_of(correlated()), CompressionConfig(bits=3.5), everything=False)
    plain = plan(model_of(noise()), CompressionConfig(bits=6.0), everything=False)
    assert "rotation" in turned.chosen.name
    assert "rotation" not in plain.chosen.name


def test_verdict_says_so_where_plain_integers_are_best() -> None:
    found = plan(model_of(noise(n=2000)), CompressionConfig(bits=4.29), everything=False)
    assert found.chosen.name == "int4, fitted levels"
    assert "plain integers are best here" in found.verdict


def _plain_sizes(rows: torch.Tensor) -> dict[int, int]:
    config = CompressionConfig(bits=1)
    return {bits: plain_config(config, rows, bits).target_bytes or 0 for bits in (1, 2, 3, 4)}


def test_verdict_names_the_plain_integers_on_both_sides_with_their_bytes() -> None:
    rows = correlated()
    sizes = _plain_sizes(rows)
    target = sizes[4] - 100
    found = plan(model_of(rows), CompressionConfig(bits=8 * target / rows.numel()))
    by_name = {row.name: row for row in found.rows}
    below, above = by_name["int3, fitted levels"], by_name["int4, fitted levels"]
    assert below.num_bytes == sizes[3] <= target < above.num_bytes == sizes[4]
    times = [row.error / found.chosen.error for row in (below, above)]
    assert times[0] > times[1] > 1
    assert found.verdict.endswith(
        f"; plain integers next to it: int3 with {sizes[3]:,} bytes, "
        f"{1 - sizes[3] / target:.1%} below the limit, has {times[0]:.1f} times its error; "
        f"int4 with {sizes[4]:,} bytes, {sizes[4] / target - 1:.1%} above the limit, "
        f"has {times[1]:.1f} times its error."
    )
    assert "of this size" not in found.verdict


def test_larger_plain_integers_are_compared_but_never_chosen() -> None:
    rows = noise(n=2000)
    sizes = _plain_sizes(rows)
    config = CompressionConfig(bits=8 * (sizes[3] - 1) / rows.numel())
    for metric in (None, lambda model: float((weight_of(model) == rows).all()) - _error(model)):
        found = plan(model_of(rows), config, metric=metric)
        largest = max(row.num_bytes for row in found.rows if row.name == "int3, fitted levels")
        assert largest == sizes[3] > found.chosen.num_bytes


def _error(model: nn.Module) -> float:
    return float((weight_of(model) - noise(n=2000)).square().sum())


def test_metric_is_told_of_the_plain_integers_on_both_sides() -> None:
    rows = correlated()

    def quality(model: nn.Module) -> float:
        return -float((weight_of(model) - rows).square().mean())

    found = plan(model_of(rows), CompressionConfig(bits=3.5), metric=quality, n_confirm=1)
    tried = {row.name: row.metric for row in found.rows if row.metric is not None}
    assert set(tried) == {found.chosen.name, "int3, fitted levels", "int4, fitted levels"}
    for name in ("int3, fitted levels", "int4, fitted levels"):
        assert f"times its error, metric {tried[name]:.2f}" in found.verdict


def test_plain_integers_are_chosen_where_the_metric_prefers_them() -> None:
    rows = correlated()
    plain = next(Candidates(rows, CompressionConfig(bits=3.5)).at(21_000, everything=False))
    assert plain.name == "int3, fitted levels"

    def quality(model: nn.Module) -> float:
        return -float((weight_of(model) - plain.table).square().mean())

    found = plan(model_of(rows), CompressionConfig(bits=3.5), metric=quality, n_confirm=1)
    assert found.chosen.name == plain.name
    assert found.chosen.error > min(row.error for row in found.rows if row.bits <= 3.5)


def test_metric_decides_among_the_best_few() -> None:
    model = model_of(correlated())
    seen: list[torch.Tensor] = []

    def least(of: nn.Module) -> float:
        seen.append(weight_of(of).clone())
        return -float(len(seen))

    found = plan(model, CompressionConfig(bits=3.5), metric=least, n_confirm=2, everything=False)
    assert found.dense_metric == -1.0
    assert found.chosen.metric == -2.0
    assert len(seen) == 3
    assert torch.equal(weight_of(model), seen[0])


def test_largest_drop_finds_the_smallest_size() -> None:
    rows = noise(n=2000)

    def quality(model: nn.Module) -> float:
        table = weight_of(model)
        return -100 * float((table - rows).square().sum() / rows.square().sum())

    config = CompressionConfig(bits=8.0)
    loose = plan(model_of(rows), config, metric=quality, max_drop=15.0, everything=False)
    tight = plan(model_of(rows), config, metric=quality, max_drop=2.0, everything=False)
    assert tight.chosen.num_bytes > loose.chosen.num_bytes
    assert tight.chosen.metric is not None
    assert tight.chosen.metric >= -2.0


def test_unreachable_drop_is_refused() -> None:
    with pytest.raises(BudgetError, match="no size up to"):
        plan(
            model_of(noise()),
            CompressionConfig(bits=3.0),
            metric=lambda m: float(weight_of(m)[0, 0] == noise()[0, 0]),
            max_drop=0.0,
        )


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_metric_that_is_no_number_is_refused_and_the_model_kept(value: float) -> None:
    model = model_of(noise())
    with pytest.raises(InputError, match=r"metric of .* must be a finite number"):
        plan(model, CompressionConfig(bits=3.0), metric=lambda _: value)
    assert torch.equal(weight_of(model), noise())


def test_size_that_no_method_reaches_names_the_smallest() -> None:
    with pytest.raises(BudgetError, match=r"too few for every method: .* has [\d,]+ bytes"):
        plan(model_of(noise()), CompressionConfig(target_bytes=50, method="codes"))


def test_drop_without_a_metric_is_refused() -> None:
    with pytest.raises(InputError, match="needs a metric"):
        plan(model_of(noise()), CompressionConfig(bits=3.0), max_drop=1.0)


def test_two_tables_are_refused() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(50, 8), "b": nn.Embedding(50, 8)})
    config = CompressionConfig(bits=6.0, modules=("a", "b"))
    with pytest.raises(InputError, match="2 tables"):
        plan(model, config)


def test_vector_codes_keep_the_budget_and_improve_with_it() -> None:
    pytest.importorskip("faiss")
    rows = correlated()
    for make in (product_quantized, residual_quantized):
        small, large = make(rows, 40_000), make(rows, 80_000)
        assert small.num_bytes <= 40_000 < large.num_bytes <= 80_000
        errors = [float((rows - each.table).square().sum()) for each in (small, large)]
        assert errors[1] < errors[0] < float(rows.square().sum())
    with pytest.raises(BudgetError, match="product quantisation needs"):
        product_quantized(rows, 1000)
