"""Every architecture through the whole life of a compressed model."""

from __future__ import annotations

import copy
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from kflats.layers import FactorTable
from kflats.layers.stored import FILE_NAMES
from kflats.storage.manifest import factor_layers
from tests.hf import worker
from tests.hf.architectures import (
    ARCHITECTURES,
    answers,
    compressed,
    dense_model,
    inputs_of,
    readers_of,
    reconstructed,
)
from tests.promises import assert_same_outputs, assert_same_tensors, fingerprints

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
FULL = [name for name, row in ARCHITECTURES.items() if row.dtype == torch.float32]
LEAVES = [FILE_NAMES[key] for key in (*FactorTable.FACTORS, *FactorTable.SAVED_BUFFERS)]
"""Names of the tensors of a table of factors in files."""
names = pytest.mark.parametrize("name", ARCHITECTURES)


@cache
def said(name: str, dense: bool = False) -> dict[str, Tensor]:
    return answers(reconstructed(name) if dense else compressed(name)[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with all models, compressed and dense, that could be saved."""
    place = tmp_path_factory.mktemp("matrix")
    for name in ARCHITECTURES:
        with suppress(Exception):  # the tests of this one call it again and show the error
            compressed(name)[0].save_pretrained(place / "compressed" / name)
            reconstructed(name).save_pretrained(place / "dense" / name)
    return place


@pytest.fixture(scope="module")
def loaded(folder: Path) -> dict[str, worker.Results]:
    """Give what two fresh processes, with and without kflats, found in the folders."""
    running = {kind: worker.start(kind, folder / kind) for kind in ("compressed", "dense")}
    return {kind: worker.results(each, folder / kind) for kind, each in running.items()}


@pytest.fixture
def fresh(loaded: dict[str, worker.Results]) -> worker.Results:
    return loaded["compressed"]


@pytest.fixture
def plain(loaded: dict[str, worker.Results]) -> worker.Results:
    return loaded["dense"]


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Compare within rounding of the dtype, relative to the largest number."""
    size = ROUNDING[expected.dtype] * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=size)


def assert_same_answers(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert_same_outputs(found["logits"], expected["logits"])
    if expected["logits"].dtype == torch.float32:  # in half precision the best tokens may tie
        for search in expected.keys() - {"logits"}:
            assert torch.equal(found[search], expected[search])


def facts_of(model: Any) -> dict[str, Any]:
    """Return what a fresh process that loads the model must find."""
    return {
        "class": type(model).__name__,
        "unlike the file": {},
        "tensors": fingerprints(model),
        "readers": readers_of(model),
    }


@names
def test_planted_subspaces_are_found(name: str) -> None:
    model, report = compressed(name)
    error = max(table.relative_error for table in report.tables)
    assert error < ROUNDING[ARCHITECTURES[name].dtype]
    assert [len(table.readers) for table in report.tables] == list(ARCHITECTURES[name].readers)
    tables = {(t.shape.num_embeddings, t.shape.embedding_dim) for t in report.tables}
    assert not tables & {tuple(tensor.shape) for tensor in model.state_dict().values()}


@names
def test_outputs_are_those_of_the_reconstructed_table(name: str) -> None:
    assert factor_layers(reconstructed(name)) == {}
    assert_near(said(name)["logits"], said(name, dense=True)["logits"])


@pytest.mark.parametrize("name", FULL)
def test_outputs_are_those_of_the_original(name: str) -> None:
    with torch.no_grad():
        original = dense_model(name)(**inputs_of(compressed(name)[0]))[0]
    assert_near(said(name)["logits"], original)  # its tables lie in the subspaces


@pytest.mark.parametrize("name", [n for n in FULL if ARCHITECTURES[n].generates])
@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_generated_tokens_are_those_of_the_dense_model(name: str, search: str) -> None:
    tokens = said(name)[search]
    assert torch.equal(tokens, said(name, dense=True)[search])
    assert len(tokens.unique()) > 2


def loss(model: Any) -> Tensor:
    inputs = inputs_of(model)
    ids = inputs["input_ids"]
    if "SequenceClassification" in type(model).__name__:
        return model(**inputs, labels=torch.tensor([0, 1])).loss  # type: ignore[no-any-return]
    labels = ids.flip(1)
    if model.config.is_encoder_decoder:
        return model(input_ids=ids, labels=labels).loss  # type: ignore[no-any-return]
    return model(**inputs, labels=labels).loss  # type: ignore[no-any-return]


def factor_gradients(layer: FactorTable, gradient: Tensor) -> dict[str, Tensor]:
    """Return what the gradient of a dense table means for the factors, bases in echelon form."""
    labels, pivots = layer.labels, layer.pivots
    assert labels is not None
    assert pivots is not None
    found: dict[str, list[Tensor]] = {"coefficients": [], "bases": [], "means": []}
    for number, group in enumerate(layer.groups):
        part = gradient[labels == number]
        if group.directions is None:
            found["coefficients"].append(part.flatten())
            continue
        basis = layer.basis(group.basis).detach()
        bits = (pivots[group.basis, :, None] >> torch.arange(8)) & 1
        others = part[:, bits.flatten()[: part.shape[1]] == 0]
        inner = layer.group_coefficients(number).detach()
        found["coefficients"].append((part @ basis.T).flatten())
        found["bases"].append((inner.T @ others).flatten())
        found["means"].append(others.sum(0))
    return {name: torch.cat(parts) for name, parts in found.items()}


@pytest.mark.parametrize("name", FULL)
def test_gradients_are_those_of_the_dense_table(name: str) -> None:
    model, dense = copy.deepcopy(compressed(name)[0]), copy.deepcopy(reconstructed(name))
    loss(model).backward()
    loss(dense).backward()
    for table, *_ in readers_of(model):
        layer = model.get_submodule(table)
        expected = factor_gradients(layer, dense.get_submodule(table).weight.grad)
        for factor, gradient in expected.items():
            assert gradient.any()
            assert_near(getattr(layer, factor).grad, gradient)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - set(FULL)))
def test_backward_reaches_all_factors_in_half_precision(name: str) -> None:
    model = copy.deepcopy(compressed(name)[0])
    loss(model).backward()
    for layer in factor_layers(model).values():
        assert isinstance(layer, FactorTable)
        for factor in (layer.coefficients, layer.bases, layer.means):
            assert factor is not None
            assert factor.grad is not None
            assert factor.grad.any()


@names
def test_fresh_process_gives_the_same_tensors_and_outputs(name: str, fresh: worker.Results) -> None:
    facts, found = fresh[name]
    assert facts == facts_of(compressed(name)[0])
    assert_same_answers(found, said(name))


@names
def test_plain_transformers_reads_the_dense_model_and_refuses_factors(
    name: str, plain: worker.Results
) -> None:
    facts, found = plain[name]
    refused = facts.pop("without kflats")
    assert facts == facts_of(reconstructed(name))
    assert_same_answers(found, said(name, dense=True))
    assert refused == ["RuntimeError", "got kflats", "kflats_bases", "MISMATCH"]


@names
def test_loaded_model_becomes_the_same_dense_model(name: str, folder: Path) -> None:
    expected = reconstructed(name)
    model = type(expected).from_pretrained(folder / "compressed" / name, dtype="auto")
    assert_same_tensors(model, compressed(name)[0])
    model.dequantize()
    assert [type(each) for each in model.modules()] == [type(each) for each in expected.modules()]
    with torch.no_grad():
        assert_same_outputs(model(**inputs_of(model))[0], said(name, dense=True)["logits"])


@names
def test_dense_folder_does_not_name_kflats(name: str, folder: Path) -> None:
    compressed(name)
    assert "kflats" in (folder / "compressed" / name / "config.json").read_text()
    for path in (folder / "dense" / name).iterdir():
        assert b"kflats" not in path.read_bytes()


def keys_of(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("name", FULL)
def test_files_differ_in_the_tables_only(name: str, folder: Path, tmp_path: Path) -> None:
    _, report = compressed(name)
    dense_model(name).save_pretrained(tmp_path)
    factors = {f"{table.name}.{leaf}" for table in report.tables for leaf in LEAVES}
    assert keys_of(folder / "dense" / name) == keys_of(tmp_path)
    assert keys_of(folder / "compressed" / name) - factors == keys_of(tmp_path) - factors


@names
def test_tying_again_changes_nothing(name: str) -> None:
    for dense in (False, True):
        before = reconstructed(name) if dense else compressed(name)[0]
        model = copy.deepcopy(before)
        model.tie_weights()
        assert_same_tensors(model, before)
        assert readers_of(model) == ([] if dense else readers_of(compressed(name)[0]))
        with torch.no_grad():
            assert_same_outputs(model(**inputs_of(model))[0], said(name, dense)["logits"])


@names
def test_file_holds_every_table_once(name: str, folder: Path) -> None:
    _, report = compressed(name)
    with safe_open(folder / "compressed" / name / "model.safetensors", framework="pt") as file:
        sizes = {key: file.get_tensor(key).nbytes for key in file.keys()}  # noqa: SIM118
    for table in report.tables:
        tensors = [f"{reader}.{leaf}" for reader in table.readers for leaf in LEAVES]
        present = {key for key in tensors if key in sizes}
        assert present == {f"{table.name}.{leaf}" for leaf in LEAVES}
        assert sum(sizes[key] for key in present) == table.bytes_after
