"""What is compared is what would be saved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kflats import CompressionConfig, compress_
from kflats.planning.candidates import Candidates
from kflats.planning.plain import plain_config
from kflats.quantization.codebooks import WIDTHS
from tests.conftest import spectral_table

EXACT = (0, 5)


def config(*, weighted: bool, bits: float = 6.0) -> CompressionConfig:
    weights = torch.linspace(1, 0.01, 400).square() if weighted else None
    return CompressionConfig(bits=bits, sample_weight=weights, exact_ids=EXACT)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_config_of_a_candidate_gives_its_table(*, weighted: bool) -> None:
    table = spectral_table()
    asked = config(weighted=weighted)
    candidates = Candidates(table, asked)
    found = list(candidates.at(asked.code_bytes(table.numel()), everything=False))
    assert {each.name for each in found} >= {"codes of columns", "codes, one rotation"}
    assert any(each.name.startswith("int") for each in found)
    for each in found:
        assert each.config is not None
        model = nn.Sequential(nn.Embedding.from_pretrained(table.clone()), nn.Linear(24, 2))
        report = compress_(model, each.config)
        rows = model[0](torch.arange(400))
        torch.testing.assert_close(rows, each.table, msg=each.name)
        assert report.tables[0].bytes_after == each.num_bytes


def test_errors_of_codes_count_as_they_are_with_weights_and_by_length_without() -> None:
    assert config(weighted=True).relative_power == 0.0
    assert config(weighted=False).relative_power == 0.5
    assert CompressionConfig(bits=2, relative=1.0).relative_power == 1.0
    weights = torch.ones(3)
    assert CompressionConfig(compression=0.4, sample_weight=weights).relative_power == 1.0
    assert CompressionConfig(compression=0.4).relative_power == 0.0


@pytest.mark.parametrize("target", [1200, 3000, 5000, 9000])
def test_plain_integers_have_the_bits_of_their_name(target: int) -> None:
    table = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    asked = CompressionConfig(target_bytes=target, method="codes")
    found = [each for each in Candidates(table, asked).at(target) if each.name.startswith("int")]
    (plain,) = found
    bits = int(plain.name[3])
    sizes = {each: plain_config(asked, table, each).code_bytes(4800) for each in WIDTHS}
    assert bits == max(b for b, size in sizes.items() if size <= target)
    assert plain.num_bytes == sizes[bits]
