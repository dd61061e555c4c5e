"""``import kflats`` alone makes transformers read compressed models, whatever comes first."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.hf.models import compressed_bert
from tests.hf.orders import ORDERS


def python(*arguments: str) -> str:
    command = [sys.executable, "-W", "error::RuntimeWarning", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("imports") / "bert"
    compressed_bert("BertModel").save_pretrained(folder)
    lines = python("-m", "tests.hf.orders", str(folder)).splitlines()
    return dict(line.split(": ", 1) for line in lines)


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_imports_loads_the_factors(order: str, outcomes: dict[str, str]) -> None:
    assert outcomes[order] == "FactorizedEmbedding"


def test_import_alone_is_light() -> None:
    heavy = "('torch', 'transformers', 'kflats.hf')"
    assert python("-c", f"import sys, kflats; print([m for m in {heavy} if m in sys.modules])") == (
        "[]"
    )


def test_registering_twice_wraps_once() -> None:
    import transformers

    from kflats.hf import register

    before = dict(vars(transformers.PreTrainedModel))
    register()
    register()
    assert dict(vars(transformers.PreTrainedModel)) == before
