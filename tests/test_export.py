from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kflats
from kflats import CompressionConfig, ExportError, InputError
from kflats.cli.console import quiet_libraries
from tests.conftest import tiny_bert
from tests.hf.architectures import ARCHITECTURES, dense_model

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CONFIG = CompressionConfig(compression=0.4, n_clusters=2, exact_ids=(0, 3))


def run(folder: Path, **inputs: Any) -> Any:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    feed = {name: value.numpy() for name, value in inputs.items()}
    return torch.from_numpy(session.run(None, feed)[0])


@pytest.mark.parametrize("affine", [False, True])
def test_onnx_gives_the_logits_of_pytorch_for_any_batch_and_length(
    affine: bool, tmp_path: Path
) -> None:
    model = tiny_bert("BertForMaskedLM")
    kflats.compress_(model, CompressionConfig(compression=0.3, n_clusters=2, affine=affine))
    report = kflats.export_onnx(model, tmp_path / "onnx")
    for shape in ((1, 1), (5, 17)):
        ids = torch.randint(0, 200, shape)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
        }
        with torch.no_grad():
            expected = model(**inputs).logits
        torch.testing.assert_close(run(tmp_path / "onnx", **inputs), expected, atol=1e-5, rtol=0)
    assert report.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert report.outputs == ("logits",)
    assert "quantization_config" not in json.loads((tmp_path / "onnx/config.json").read_text())
    assert hasattr(model.config, "quantization_config")
    assert report.max_difference < 1e-5


def test_weights_of_the_file_are_smaller_by_the_report(tmp_path: Path) -> None:
    model = tiny_bert(vocab_size=3000)
    kflats.export_onnx(model, tmp_path / "dense")
    report = kflats.compress_(model, CONFIG)
    kflats.export_onnx(model, tmp_path / "small")
    sizes = {
        name: (tmp_path / name / "model.onnx.data").stat().st_size for name in ("dense", "small")
    }
    (table,) = report.tables
    places = 3000 * (4 - 1)  # four bytes for the place of a row instead of a label of one
    saved = table.bytes_before - table.bytes_after - places
    # The exporter keeps tensors of a few numbers in the graph.
    assert abs(sizes["dense"] - sizes["small"] - saved) < 2000


@pytest.mark.parametrize("name", ["gpt2", pytest.param("t5", marks=pytest.mark.slow)])
def test_decoders_export_without_a_cache(name: str, tmp_path: Path) -> None:
    quiet_libraries()
    model = dense_model(name)
    before = model.config.use_cache
    kflats.compress_(model, CONFIG)
    report = kflats.export_onnx(model, tmp_path / "onnx")
    assert report.outputs[0] == "logits"
    assert not [each for each in report.outputs if "key_values" in each]
    assert model.config.use_cache is before


def test_half_precision(tmp_path: Path) -> None:
    model = tiny_bert("BertForMaskedLM")
    kflats.compress_(model, CONFIG)
    with pytest.raises(InputError, match="bfloat16"):
        kflats.export_onnx(model.bfloat16(), tmp_path / "bf16")
    assert kflats.export_onnx(model.half(), tmp_path / "half").max_difference < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "bf16" not in name])
def test_every_architecture_exports(name: str, tmp_path: Path) -> None:
    model = dense_model(name)
    kflats.compress_(model, CONFIG)
    assert kflats.export_onnx(model, tmp_path / "onnx").max_difference < 1e-4


def test_files_hold_no_paths_and_no_stack_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_bert("BertForMaskedLM")
    kflats.compress_(model, CONFIG)
    report = kflats.export_onnx(model, tmp_path / "onnx")
    notes = [*{str(Path(str(module.__file__)).parent).encode() for module in (kflats, torch)}]
    notes += [b".py", b'File "', b"stack_trace", b"namespace", str(tmp_path).encode()]
    files = [path for path in (tmp_path / "onnx").rglob("*") if path.is_file()]
    for path in files:
        assert [note for note in notes if note in path.read_bytes()] == [], path
    monkeypatch.setattr("kflats.export._strip", lambda _: None)
    kept = kflats.export_onnx(model, tmp_path / "kept")
    assert b"stack_trace" in (tmp_path / "kept" / "model.onnx").read_bytes()
    assert report.num_bytes < kept.num_bytes
    ids = torch.arange(20).reshape(2, 10)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }
    assert torch.equal(run(tmp_path / "onnx", **inputs), run(tmp_path / "kept", **inputs))


def test_wrong_result_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kflats.layers.lookup import lookup_exported

    def broken(*factors: Any) -> torch.Tensor:
        return 1.5 * lookup_exported(*factors)

    monkeypatch.setattr("kflats.layers.table.lookup_exported", broken)
    model = tiny_bert()
    kflats.compress_(model, CONFIG)
    with pytest.raises(ExportError, match=r"differ by .* in last_hidden_state"):
        kflats.export_onnx(model, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def test_model_without_input_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 0 transformers models"):
        kflats.export_onnx(nn.Sequential(nn.Embedding(9, 2)), tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []
