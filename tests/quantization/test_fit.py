from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from kflats import BudgetError, CompressionConfig, InputError
from kflats.quantization.allocation import assign, row_bytes, rung, rungs, thin
from kflats.quantization.codes import Codes
from kflats.quantization.fit import code_table, weighted_error
from kflats.quantization.search import fit_codes
from kflats.quantization.settings import CodeSettings
from tests.conftest import planted, spectral_table

NONE = torch.zeros(0, dtype=torch.int64)
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"rotated": False},
    "rotated": {},
    "two bases": {"n_clusters": 2},
    "uniform": {"levels": "uniform"},
    "wide bases": {"basis_bits": 16},
    "two rungs": {"max_rungs": 2},
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def some_forms(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("form", [FORMS[name] for name in names], ids=names)


def coded(table: Tensor, size: int, form: dict[str, Any] | None = None, **more: Any) -> Codes:
    return code_table(table, size, settings=CodeSettings(**(form or {})), **more)


def found_by(table: Tensor, exact_ids: Tensor = NONE, **settings: Any) -> Codes:
    return fit_codes(table, CompressionConfig(method="codes", **settings), exact_ids)


def relative_error(table: Tensor, codes: Codes) -> float:
    return math.sqrt(weighted_error(table, codes, None))


def bits_of_rows(codes: Codes) -> Tensor:
    """Return the bytes of the record of every row."""
    sizes = torch.tensor(codes.shape.record_bytes)
    labels = torch.zeros(codes.shape.num_embeddings) if codes.labels is None else codes.labels
    return sizes[labels.long()]


@forms
@pytest.mark.parametrize("size", [9_000, 16_000])
def test_the_size_is_kept_and_used(form: dict[str, Any], size: int) -> None:
    table = spectral_table(1000)
    codes = coded(table, size, form)
    assert 0.97 * size <= codes.num_bytes <= size
    assert codes.table().shape == table.shape


@some_forms("plain", "rotated", "two bases", "two rungs")
def test_more_bytes_never_give_a_larger_error(form: dict[str, Any]) -> None:
    table, weights = spectral_table(), torch.linspace(1, 0.01, 400)
    sizes = [3_500, 5_000, 7_000, 9_000, 12_000]
    errors = [
        weighted_error(table, coded(table, size, form, sample_weight=weights), weights)
        for size in sizes
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.001 < 0.05 < errors[0]


@some_forms("plain", "rotated")
def test_slightly_more_bytes_never_give_a_much_larger_error(form: dict[str, Any]) -> None:
    table = spectral_table()
    errors = [relative_error(table, coded(table, size, form)) for size in range(3_500, 5_500, 200)]
    assert all(after < 1.05 * before for before, after in pairwise(errors))


@forms
def test_heavier_rows_never_get_fewer_bits(form: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(2)
    directions = torch.nn.functional.normalize(torch.randn(60, 24, generator=generator))
    table = torch.cat([directions] * 4)
    weights = torch.tensor([1.0, 4.0, 16.0, 256.0]).repeat_interleave(60)
    bits = bits_of_rows(coded(table, 5_000, form, sample_weight=weights)).view(4, 60)
    assert bool((bits.diff(dim=0) >= 0).all())
    assert bool((bits[3] > bits[0]).all())


def test_rows_of_no_weight_get_no_bits() -> None:
    table = spectral_table()
    weights = (torch.arange(400) < 200).float()
    bits = bits_of_rows(coded(table, 5_000, sample_weight=weights))
    assert not bool(bits[200:].any())
    assert bool(bits[:200].any())


def test_weights_that_are_all_zero_count_as_equal() -> None:
    table = spectral_table()
    expected = coded(table, 6_000).table()
    assert torch.equal(coded(table, 6_000, sample_weight=torch.zeros(400)).table(), expected)


def test_the_unit_of_the_weights_does_not_matter() -> None:
    table, weights = spectral_table(), torch.linspace(1, 0.1, 400)
    small, large = (
        coded(table, 6_000, sample_weight=scale * weights).table() for scale in (2**-20, 2**20)
    )
    assert torch.equal(small, large)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@some_forms("plain", "two bases")
def test_exact_rows_are_exact(form: dict[str, Any], dtype: torch.dtype) -> None:
    table = (0.1 * spectral_table().double()).to(dtype)
    exact = torch.tensor([0, 5, 399])
    codes = coded(table, 9_000, form, exact_ids=exact)
    assert codes.exact is not None
    assert codes.exact.dtype == codes.scales.dtype == codes.books.dtype == dtype
    assert torch.equal(codes.table()[exact].to(dtype), table[exact])
    assert codes.shape.n_exact == 3
    assert codes.num_bytes <= 9_000


def test_a_table_of_exact_rows_only_is_refused() -> None:
    with pytest.raises(InputError, match="all rows are exact"):
        coded(torch.ones(3, 4), 9_000, exact_ids=torch.arange(3))


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@some_forms("plain", "rotated", "wide bases")
def test_half_precision_costs_next_to_nothing(
    form: dict[str, Any], dtype: torch.dtype, scale: float
) -> None:
    table = (scale * spectral_table()).to(dtype)
    narrow, wide = coded(table, 9_000, form), coded(table.float(), 10_000, form)
    assert narrow.num_bytes <= 9_000
    assert relative_error(table, narrow) < 1.05 * relative_error(table.float(), wide) + 0.002


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (3, 8), (8, 1), (2, 2), (20, 3)], ids=str)
def test_tiny_tables_are_coded(shape: tuple[int, int], rotated: bool) -> None:
    table = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    codes = coded(table, 3_000, {"rotated": rotated})
    assert codes.num_bytes <= 3_000
    assert relative_error(table, codes) < 0.1
    assert relative_error(table, found_by(table, target_bytes=3_000)) < 0.1


@pytest.mark.parametrize("form", [form for form in FORMS.values() if "n_clusters" not in form])
@pytest.mark.parametrize("value", [0.0, 2.0, -3e-5])
def test_constant_rows_are_their_mean(form: dict[str, Any], value: float) -> None:
    table = torch.full((50, 8), value)
    codes = coded(table, 3_000, form)
    torch.testing.assert_close(codes.table(), table, rtol=1e-6, atol=0)
    assert not bool(bits_of_rows(codes).any())


def test_clusters_that_stay_empty_are_refused() -> None:
    for table in (torch.ones(50, 8), torch.randn(50, 1)):
        with pytest.raises(InputError, match="n_clusters=2 leaves clusters empty; use 1"):
            coded(table, 3_000, {"n_clusters": 2})


def test_rows_of_zeros_among_others_stay_near_zero() -> None:
    table = spectral_table()
    table[::7] = 0
    for form in FORMS.values():
        rows = coded(table, 9_000, form).table()
        assert bool(rows.isfinite().all())
        assert float(rows[::7].norm(dim=1).max()) < 0.2 * float(table.norm(dim=1).mean())


def test_constant_columns_come_back() -> None:
    table = spectral_table()
    table[:, 3:6] = torch.tensor([0.0, 1.0, -2.0])
    for rotated in (False, True):
        rows = coded(table, 9_000, {"rotated": rotated}).table()
        torch.testing.assert_close(rows[:, 3:6], table[:, 3:6], rtol=0, atol=0.05)


@pytest.mark.parametrize(("n_clusters", "size"), [(2, 9_000), (3, 12_000)])
def test_clusters_beat_one_basis_on_a_planted_mixture(n_clusters: int, size: int) -> None:
    table = planted(1200 // n_clusters, n_clusters, 16 // n_clusters, 24, noise=0.02)[0].float()
    one, several = (coded(table, size, {"n_clusters": k}) for k in (1, n_clusters))
    assert several.shape.n_clusters == n_clusters
    assert relative_error(table, several) < 0.8 * relative_error(table, one)


def test_a_rotation_is_chosen_for_correlated_columns() -> None:
    table = spectral_table(2000, 32)
    codes = found_by(table, bits=3)
    assert codes.shape.rotated[0]
    plain = found_by(table, bits=3, options={"rotated": False})
    assert relative_error(table, codes) < relative_error(table, plain)


def test_columns_are_left_as_they_are_in_white_noise() -> None:
    table = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    assert found_by(table, bits=3).shape.rotated == (False,)


def test_clusters_are_found_in_a_mixture() -> None:
    table = planted(400, 3, 6, 24, noise=0.02)[0].float()
    found = found_by(table, target_bytes=12_000)
    assert found.shape.n_clusters >= 2
    one = found_by(table, target_bytes=12_000, n_clusters=1)
    assert relative_error(table, found) < 0.6 * relative_error(table, one)


@pytest.mark.parametrize("k", [1, 2])
def test_the_number_of_clusters_is_kept_where_it_is_given(k: int) -> None:
    shape = found_by(spectral_table(), bits=8, n_clusters=k).shape
    assert shape.rotated == (True,) * k


def test_no_more_clusters_are_tried_than_there_are_rows() -> None:
    table = torch.randn(2, 2, generator=torch.Generator().manual_seed(1))
    found = found_by(table, target_bytes=2_000)
    assert found.shape.n_clusters <= 2
    assert relative_error(table, found) < 0.1


def test_more_clusters_than_rows_are_refused_where_they_are_asked_for() -> None:
    with pytest.raises(InputError, match="n_clusters=4"):
        found_by(torch.eye(3), target_bytes=5_000, n_clusters=4)


def smallest(error: BudgetError) -> int:
    found = re.search(r"has ([\d,]+) bytes", str(error))
    assert found is not None
    return int(found[1].replace(",", ""))


@forms
def test_the_smallest_size_is_named_and_works(form: dict[str, Any]) -> None:
    table = spectral_table()
    with pytest.raises(BudgetError, match=r"smallest table .*, 100 are allowed") as raised:
        coded(table, 100, form)
    size = smallest(raised.value)
    assert coded(table, size, form).num_bytes <= size
    with pytest.raises(BudgetError, match=f"{size - 1:,} are allowed"):
        coded(table, size - 1, form)


def test_the_smallest_size_of_all_forms_is_named_and_works() -> None:
    table = spectral_table()
    with pytest.raises(BudgetError) as raised:
        found_by(table, target_bytes=100)
    size = smallest(raised.value)
    assert found_by(table, target_bytes=size).num_bytes <= size
    with pytest.raises(BudgetError):
        found_by(table, target_bytes=size - 1)


@pytest.mark.parametrize("size", [0, -5])
def test_sizes_below_one_byte_are_too_small(size: int) -> None:
    with pytest.raises(BudgetError, match="smallest table"):
        coded(spectral_table(), size)


@pytest.mark.parametrize(
    "weights",
    [
        torch.ones(399),
        torch.ones(400, 1),
        torch.full((400,), torch.nan),
        torch.full((400,), torch.inf),
        torch.linspace(-1, 1, 400),
    ],
    ids=["short", "matrix", "NaN", "infinite", "negative"],
)
def test_weights_that_cannot_be_used_are_refused(weights: Tensor) -> None:
    with pytest.raises(InputError, match="sample_weight must be 400 finite numbers of at least 0"):
        coded(spectral_table(), 9_000, sample_weight=weights)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.full((3, 4), torch.nan), "NaN or infinity, first in row 0"),
        (torch.ones(4), "a matrix of shape"),
        (torch.ones(0, 4), "at least one of each"),
        (torch.ones(3, 4).int(), "floating dtype"),
    ],
    ids=["NaN", "vector", "empty", "integers"],
)
def test_tables_that_cannot_be_used_are_refused(table: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        coded(table, 9_000)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(InputError, match=r"codes have no options \['colour'\]; they have .*max_r"):
        found_by(spectral_table(), bits=8, options={"colour": "blue"})


def test_the_table_is_not_changed() -> None:
    table = spectral_table()
    before = table.clone()
    found_by(table, bits=8)
    assert torch.equal(table, before)


@some_forms("plain", "two bases")
def test_the_same_seed_gives_the_same_bytes(form: dict[str, Any]) -> None:
    one, two = (coded(spectral_table(), 9_000, form) for _ in range(2))
    assert torch.equal(one.coefficients, two.coefficients)
    assert torch.equal(one.bases, two.bases)


@pytest.mark.parametrize("rate", [0.0, 0.5, 2.0, 4.0, 8.0])
def test_a_rung_has_at_most_its_rate_and_more_bits_for_larger_variances(rate: float) -> None:
    runs = rung(torch.logspace(0, -4, 29), rate, "lloyd-max")
    assert sum(bits * count for bits, count in runs) <= rate * 29 + 1e-6
    assert [bits for bits, _ in runs] == sorted({bits for bits, _ in runs}, reverse=True)
    assert bool(runs) == (rate > 0)
    assert rate < 8 or runs == ((8, 29),)


def test_plain_rungs_have_one_width() -> None:
    found = rungs(torch.ones(5), shaped=False, kind="lloyd-max")
    assert found == [(), *(((bits, 5),) for bits in (1, 2, 3, 4, 5, 6, 8))]
    assert [row_bytes(runs) for runs in found] == [0, 2, 3, 4, 4, 5, 6, 6]


@pytest.mark.parametrize("width", [1, 4, 8])
def test_width_gives_every_coefficient_of_every_row_so_many_bits(width: int) -> None:
    table = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(1, 0.01, 300)
    settings = CodeSettings(rotated=False, width=width)
    codes = code_table(table, 20_000, sample_weight=weights, settings=settings)
    assert codes.shape.runs == (((width, 16),),)
    assert code_table(table, codes.num_bytes, settings=settings).num_bytes == codes.num_bytes
    with pytest.raises(BudgetError, match=f"{width} bits everywhere take {codes.num_bytes:,} byt"):
        code_table(table, codes.num_bytes - 1, settings=settings)


def test_width_alone_means_columns() -> None:
    codes = found_by(spectral_table(), bits=8, options={"width": 4})
    assert (codes.shape.runs, codes.shape.rotated) == ((((4, 24),),), (False,))


def test_width_is_of_columns_and_a_width_of_codes() -> None:
    for width, rotated in ((4, True), (7, False)):
        with pytest.raises(InputError, match=r"give one of \(1, 2, 3, 4, 5, 6, 8\), and rotated"):
            CodeSettings(width=width, rotated=rotated)


def test_the_assignment_is_the_best_of_all() -> None:
    errors = torch.tensor([[9.0, 4.0, 1.0], [5.0, 1.0, 0.0], [2.0, 1.5, 1.4]])
    sizes = torch.tensor([0.0, 2.0, 4.0])
    for budget in range(0, 13, 2):
        found = assign(errors, sizes, budget).rungs
        spent = float(sizes[found].sum())
        error = float(errors.gather(1, found[:, None]).sum())
        every = torch.cartesian_prod(*[torch.arange(3)] * 3)
        fits = sizes[every].sum(1) <= budget
        best = errors[torch.arange(3), every].sum(1)[fits].min()
        assert spent <= budget
        assert error <= float(best) + 1.0
    with pytest.raises(BudgetError, match="the rows need at least 3 bytes, 2 are left"):
        assign(errors, sizes + 1, 2)


def test_rungs_are_thinned_for_all_rows_and_not_for_a_sample_only() -> None:
    errors, sizes = torch.empty(8192, 3), torch.empty(8192, 3)
    errors[::2], sizes[::2] = torch.tensor([1e6, 1, 0]), torch.tensor([0.0, 1, 2])
    errors[1::2], sizes[1::2] = torch.tensor([1, 0.9, 0.8]), torch.tensor([0.0, 50, 100])
    kept = [*thin(errors, sizes, 12_288, 2)]
    assert len(kept) == 2
    assert bool((assign(errors[:, kept], sizes[:, kept], 12_288).rungs >= 0).all())
