"""Every method on tables of every dtype and magnitude, against an oracle in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kflats import (
    Budget,
    BudgetError,
    CompressionConfig,
    Factorization,
    InputError,
    ProjectiveClustering,
    choose_n_clusters,
    choose_n_flats,
    compress_,
    relative_error,
)
from kflats.planning import plan
from kflats.quantization.fit import code_table

RANGES = {
    torch.float64: (-1010, 1010),
    torch.float32: (-120, 120),
    torch.bfloat16: (-120, 120),
    torch.float16: (-12, 12),
}
"""Exponents of 2 that the values of a dtype may have."""
HELD_BY_CODES = 90
"""Exponents of 2 that packed codes hold for certain; they are unpacked in float32."""

METHODS: dict[str, dict[str, Any]] = {
    "flats": {},
    "fast flats": {"effort": "fast"},
    "two flats": {"n_clusters": 2},
    "projective": {"method": "projective"},
    "messi": {"method": "messi", "n_clusters": 2},
    "svd": {"method": "svd"},
    "exact rows": {"exact_ids": (1, 5)},
    "codes": {"method": "codes"},
    "int2": {"method": "codes", "options": {"width": 2}},
    "int8": {"method": "codes", "options": {"width": 8}},
    "codes, exact rows": {"method": "codes", "exact_ids": (1, 5)},
}
ROWS, COLUMNS = 40, 8


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).clamp(-4, 4)


def with_one_enormous_entry(seed: int) -> Tensor:
    table = random(ROWS, COLUMNS, seed=seed) * 2.0**-100
    table[7, 3] = 1.0
    return table


def with_rows_of_all_sizes(seed: int) -> Tensor:
    return random(ROWS, COLUMNS, seed=seed) * torch.logspace(0, -12, ROWS)[:, None]


KINDS = {
    "random": lambda seed: random(ROWS, COLUMNS, seed=seed),
    "constant": lambda seed: torch.full((ROWS, COLUMNS), 1.0 + seed),
    "zeros": lambda seed: torch.zeros(ROWS, COLUMNS),
    "rank 1": lambda seed: random(ROWS, 1, seed=seed) @ random(1, COLUMNS, seed=seed + 1) / 8,
    "rank 3": lambda seed: random(ROWS, 3, seed=seed) @ random(3, COLUMNS, seed=seed + 1) / 8,
    "three rows, repeated": lambda seed: random(3, COLUMNS, seed=seed).repeat(14, 1),
    "one enormous entry": with_one_enormous_entry,
    "rows of all sizes": with_rows_of_all_sizes,
}
NARROW = {
    "single row": lambda seed: random(1, COLUMNS, seed=seed),
    "single column": lambda seed: random(ROWS, 1, seed=seed),
    "single number": lambda seed: random(1, 1, seed=seed),
}


@st.composite
def tables(draw: st.DrawFn, kinds: dict[str, Any], dtypes: list[torch.dtype]) -> tuple[Tensor, int]:
    """Draw a table, and the exponent of its magnitude."""
    dtype = draw(st.sampled_from(dtypes))
    exponent = draw(st.integers(*RANGES[dtype]))
    made = kinds[draw(st.sampled_from([*kinds]))](draw(st.integers(0, 3))).double()
    half = exponent // 2
    return (made * 2.0**half * 2.0 ** (exponent - half)).to(dtype), exponent


examples = settings(
    max_examples=50, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
any_table = tables(KINDS, [*RANGES])
wide_table = tables(KINDS | NARROW, [torch.float32, torch.float64])


def scaled(table: Tensor, like: Tensor) -> Any:
    """Return a table as NumPy float64, divided by the power of two nearest to another's values."""
    peak = float(like.double().abs().max())
    return np.ldexp(table.detach().double().numpy(), -math.frexp(peak)[1])


def norm(values: Any) -> float:
    peak = float(np.abs(values).max())
    return peak * float(np.linalg.norm(values / peak)) if peak else 0.0


def oracle(table: Tensor, rows: Tensor) -> float:
    wanted = scaled(table, table)
    error, whole = norm(wanted - scaled(rows, table)), norm(wanted)
    return error / whole if whole else float(error > 0)


def model_of(table: Tensor) -> nn.Sequential:
    return nn.Sequential(nn.Embedding.from_pretrained(table.clone()))


def check_refused(table: Tensor, exponent: int, config: CompressionConfig, message: str) -> None:
    if config.method == "codes":
        assert "packed codes of values" in message
        assert abs(exponent) > HELD_BY_CODES or table.dtype == torch.float16
    else:
        assert "all rows are equal" in message
        assert bool((table == table[0]).all())


def check_compressed(table: Tensor, exponent: int, config: CompressionConfig) -> None:
    model = model_of(table)
    try:
        report = compress_(model, config)
    except InputError as error:
        check_refused(table, exponent, config, str(error))
        assert isinstance(model[0], nn.Embedding)
        return
    found = report.tables[0].relative_error
    rows = model(torch.arange(len(table))).detach()
    assert bool(rows.isfinite().all())
    assert math.isfinite(found)
    assert found == pytest.approx(oracle(table, rows), rel=1e-9, abs=1e-300)
    assert found <= 1 + 1e-6


@pytest.mark.filterwarnings("ignore:.*of n_clusters=2 clusters are empty")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@settings(examples, max_examples=12)
@given(drawn=any_table)
def test_the_error_is_that_of_the_stored_rows(
    method: dict[str, Any], drawn: tuple[Tensor, int]
) -> None:
    table, exponent = drawn
    size = 9_000 if "options" in method else 2_000 + 400 * table.element_size()
    if method.get("method") != "codes":
        size = 2 * table.numel() * table.element_size() // 3
    check_compressed(table, exponent, CompressionConfig(target_bytes=size, **method))


@pytest.mark.parametrize("method", ["flats", "codes"])
@settings(examples, max_examples=12)
@given(drawn=tables(NARROW, [*RANGES]))
def test_single_rows_and_columns_are_stored(method: str, drawn: tuple[Tensor, int]) -> None:
    check_compressed(*drawn, CompressionConfig(target_bytes=9_000, method=method))


@examples
@given(drawn=wide_table, rank=st.integers(1, 4))
def test_svd_is_as_good_as_that_of_numpy(drawn: tuple[Tensor, int], rank: int) -> None:
    table, _ = drawn
    rank = min(rank, table.shape[1])
    values = np.linalg.svd(scaled(table, table), compute_uv=False)
    whole = norm(values)
    expected = norm(values[rank:]) / whole if whole and rank < len(values) else 0.0
    loss = 1e-3 if table.dtype == torch.float32 else 1e-7
    found = Factorization.svd(table, rank)
    assert found.relative_error == pytest.approx(expected, rel=1e-6, abs=loss)
    assert found.relative_error == pytest.approx(oracle(table, found.reconstruct()), rel=1e-9)
    assert found.squared_relative_error == pytest.approx(found.relative_error**2)


@examples
@given(
    exponent=st.integers(*RANGES[torch.float64]),
    affine=st.booleans(),
    loss=st.sampled_from(["squared", "power", "huber", "lp"]),
)
def test_the_unit_of_the_rows_changes_nothing(exponent: int, affine: bool, loss: str) -> None:
    table, half = random(ROWS, COLUMNS), exponent // 2

    def in_unit(values: Tensor) -> Tensor:
        return values * 2.0**half * 2.0 ** (exponent - half)

    def fit(rows: Tensor, scale: float) -> ProjectiveClustering:
        return ProjectiveClustering(
            3, rank=2, affine=affine, loss=loss, loss_scale=scale, random_state=0, max_iter=5
        ).fit(rows)

    plain = fit(table, 0.5)
    other = fit(in_unit(table), float(in_unit(torch.tensor(0.5, dtype=torch.float64))))
    assert torch.equal(plain.labels_, other.labels_)
    torch.testing.assert_close(plain.bases_, other.bases_)
    torch.testing.assert_close(in_unit(plain.transform(table)), other.transform(in_unit(table)))
    assert torch.equal(plain.predict(table), other.predict(in_unit(table)))
    degree = 1 if loss in ("power", "lp") else 2
    if abs(degree * exponent) < 1000:
        inertia = plain.inertia_ * 2.0 ** (degree * exponent)
        assert other.inertia_ == pytest.approx(inertia)
        score = plain.score(table) * 2.0 ** (degree * exponent)
        assert other.score(in_unit(table)) == pytest.approx(score)


def test_planted_errors_are_found_at_both_ends_of_the_range() -> None:
    plain = torch.tensor([[3.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    for scale in (1e-305, 1e-160, 1.0, 1e160, 1e305):
        found = Factorization.svd(scale * plain, 1)
        assert found.relative_error == pytest.approx(0.5**0.5)
        assert found.cluster_relative_errors.tolist() == pytest.approx([0.5**0.5])
        assert relative_error(scale * plain, found.reconstruct()) == pytest.approx(0.5**0.5)


def test_clusters_of_very_different_size_have_errors_of_their_own() -> None:
    large = torch.eye(2, dtype=torch.float64)
    small = torch.tensor([[3.0, 0.0], [4.0, 3.0]], dtype=torch.float64)
    table = torch.cat([1e200 * large, 1e-200 * small])
    bases = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    found = Factorization.from_subspaces(table, bases, torch.tensor([0, 0, 1, 1]))
    assert found.cluster_relative_errors.tolist() == pytest.approx([0.5**0.5, (9 / 34) ** 0.5])
    assert found.relative_error == pytest.approx(0.5**0.5)


def test_rows_of_other_magnitudes_than_the_fitted_ones_are_placed() -> None:
    table = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    model = ProjectiveClustering(2, rank=1, random_state=0).fit(table)
    for scale in (1e-300, 1e300):
        other = scale * table
        assert torch.equal(model.predict(other), model.labels_)
        back = model.inverse_transform(model.transform(other), model.predict(other))
        torch.testing.assert_close(back / scale, table)
    affine = ProjectiveClustering(2, rank=1, affine=True, random_state=0).fit(table + 1)
    assert affine.score(1e-300 * table) == affine.score(0 * table)
    assert bool(affine.transform(1e300 * table).isfinite().all())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.full((40, 8), 60_000.0, dtype=torch.float16), "has factors beyond .* 6.55e.04"),
        (torch.full((40, 8), 1.7e308, dtype=torch.float64), "has factors beyond .* 1.8e.308"),
    ],
    ids=["float16", "float64"],
)
def test_factors_beyond_the_dtype_are_refused(table: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Factorization.svd(table, 1)
    assert Factorization.svd(table.double() / 4, 1).relative_error < 1e-6


def test_magnitudes_that_packed_codes_cannot_hold_are_refused() -> None:
    for scale in (1e-160, 1e160):
        with pytest.raises(InputError, match=r"packed codes of values up to .* multiply the table"):
            code_table(scale * random(ROWS, COLUMNS), 4_000)
    plain = code_table(random(ROWS, COLUMNS), 4_000)
    for exponent in (-90, 100):
        found = code_table(2.0**exponent * random(ROWS, COLUMNS), 4_000)
        torch.testing.assert_close(found.table() * 2.0**-exponent, plain.table())


@pytest.mark.filterwarnings("ignore:WARNING clustering")
@pytest.mark.parametrize("scale", [1e-160, 1.0, 1e160])
def test_a_plan_is_made_for_what_holds_the_magnitudes(scale: float) -> None:
    config = CompressionConfig(target_bytes=2_500)
    found = plan(model_of(scale * random(ROWS, COLUMNS)), config, everything=scale != 1.0)
    assert 0 < found.chosen.error < 1
    assert found.chosen.can_be_saved


EIGHT = (torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", [*EIGHT, torch.int8, torch.bool, torch.complex64], ids=str)
def test_dtypes_that_cannot_be_computed_with_are_refused(dtype: torch.dtype) -> None:
    table = torch.ones(ROWS, COLUMNS).to(dtype)
    remedy = r"\.real" if dtype.is_complex else r"\.float\(\)"
    bits, size = CompressionConfig(bits=8), CompressionConfig(compression=0.3)
    model = nn.Sequential(nn.Embedding(ROWS, COLUMNS))
    model[0].weight = nn.Parameter(table, requires_grad=False)
    labels = torch.zeros(ROWS, dtype=torch.int64)
    for entry in (
        lambda: compress_(model, size),
        lambda: compress_(model, bits),
        lambda: plan(model, bits),
        lambda: code_table(table, 9_000),
        lambda: Factorization.svd(table, 1),
        lambda: Factorization.projective(table, 2, 1),
        lambda: Factorization.from_subspaces(table, torch.eye(8)[None, :1], labels),
        lambda: choose_n_clusters(table, Budget(compression=0.3)),
        lambda: choose_n_flats(table, Budget(compression=0.3)),
    ):
        with pytest.raises(InputError, match=rf"dtype {dtype}; .*Call {remedy}"):
            entry()
    if dtype in EIGHT or dtype.is_complex:  # the estimator converts whole numbers
        with pytest.raises(InputError, match=rf"X has dtype {dtype}"):
            ProjectiveClustering(2).fit(table)


def test_equal_rows_are_refused_by_flats_with_a_remedy() -> None:
    table = torch.ones(ROWS, COLUMNS)
    with pytest.raises(BudgetError, match=r"all rows are equal: .* Use method='svd'"):
        compress_(model_of(table), CompressionConfig(compression=0.3))
    report = compress_(model_of(table), CompressionConfig(compression=0.3, method="svd"))
    assert report.tables[0].relative_error < 1e-6
