from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from kflats import FactorizedEmbedding, FactorizedLinear, FactorShape
from tests.layers.dense import FORMS, filled, mixed_shape

SHAPES = {
    "svd": FactorShape.uniform(30, 6, n_clusters=1, rank=2),
    "clusters": FactorShape.uniform(30, 6, n_clusters=3, rank=2),
    "mixed and affine": mixed_shape(affine=True),
    **FORMS,
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))


class Tied(nn.Module):
    """A scaled embedding with padding and a head on its table."""

    def __init__(self, shape: FactorShape) -> None:
        super().__init__()
        self.words = filled(FactorizedEmbedding(shape, padding_idx=0, scale=2.0))
        self.head = filled(FactorizedLinear(shape, bias=True), seed=1)
        self.head.share_with(self.words)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.words(ids)))
        return logits


def some_ids(batch: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 30, (batch, 4), generator=torch.Generator().manual_seed(seed))


def exported(module: nn.Module, example: Tensor) -> ExportedProgram:
    return export(module.eval(), (example,), dynamic_shapes=({0: Dim("batch")},))


def assert_no_operator_of_ours(program: ExportedProgram) -> None:
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls
    assert not [call for call in calls if "kflats" in call]


@every_shape
def test_embedding_exports_to_plain_operators(shape: FactorShape) -> None:
    layer = filled(FactorizedEmbedding(shape, padding_idx=2, scale=3.0))
    program = exported(layer, some_ids(3))
    assert_no_operator_of_ours(program)
    run = program.module()
    for batch in (3, 8):
        ids = some_ids(batch, seed=batch)
        torch.testing.assert_close(run(ids), layer(ids))


def test_exported_embedding_needs_no_id_of_every_group() -> None:
    layer = filled(FactorizedEmbedding(SHAPES["clusters"]))
    run = exported(layer, some_ids(3)).module()
    ids = torch.full((2, 4), 7)
    torch.testing.assert_close(run(ids), layer(ids))


@every_shape
@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
def test_head_exports_to_plain_operators(shape: FactorShape, bias: bool) -> None:
    layer = filled(FactorizedLinear(shape, bias=bias))
    program = exported(layer, torch.zeros(3, 4, 6))
    assert_no_operator_of_ours(program)
    run = program.module()
    for batch in (3, 8):
        hidden = torch.randn(batch, 4, 6, generator=torch.Generator().manual_seed(batch))
        torch.testing.assert_close(run(hidden), layer(hidden))


@every_shape
def test_tied_layers_export_one_set_of_factors(shape: FactorShape) -> None:
    model = Tied(shape).eval()
    program = exported(model, some_ids(2))
    assert_no_operator_of_ours(program)
    for batch in (2, 5):
        ids = some_ids(batch, seed=batch)
        torch.testing.assert_close(program.module()(ids), model(ids))
    stored = {tensor.data_ptr() for tensor in program.state_dict.values() if tensor.numel()}
    own = {p.data_ptr() for p in model.parameters() if p.numel()}
    assert own <= stored
    numbers = sum(p.numel() for p in model.parameters())
    assert numbers == shape.num_parameters + 30


@every_shape
def test_no_exported_product_is_a_sum_of_nothing(shape: FactorShape) -> None:
    program = exported(Tied(shape), some_ids(3))
    products = ("mm", "matmul", "linear", "addmm", "bmm")
    for node in program.graph.nodes:
        if str(node.target).split(".")[1:2] and str(node.target).split(".")[1] in products:
            assert node.args[0].meta["val"].shape[-1] > 0, f"{node} is undefined in ONNX Runtime"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "name", ["ragged, affine, exact rows", "means alone", "echelon, affine", "echelon of full rank"]
)
def test_onnx_runtime_computes_the_same(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Tied(SHAPES[name]).eval()
    path = tmp_path / "model.onnx"
    shapes = ({0: Dim("batch")},)
    torch.onnx.export(
        model, (some_ids(3),), path, dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 8):
        ids = some_ids(batch, seed=batch)
        feed = {session.get_inputs()[0].name: ids.numpy()}
        found = torch.from_numpy(session.run(None, feed)[0])
        torch.testing.assert_close(found, model(ids), rtol=1e-4, atol=1e-4)
