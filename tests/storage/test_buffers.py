"""Plain modules loaded into skeletons on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kflats
from kflats import CheckpointError, CompressionConfig
from tests.conftest import tiny_bert

IDS = torch.arange(5, 14)[None]


class Classifier(nn.Module):
    """A plain module around a transformers model, which has buffers that are not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = tiny_bert()
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.bert(ids)[1])
        return found


class Masked(Classifier):
    """Has a buffer of its own that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(3), persistent=False)


@pytest.mark.parametrize("settings", [{"compression": 0.4, "n_clusters": 2}, {"bits": 10.0}])
def test_skeleton_of_a_transformers_model_gets_its_buffers(
    settings: dict[str, float], tmp_path: Path
) -> None:
    model = Classifier().eval()
    kflats.compress_(model, CompressionConfig(**settings))  # type: ignore[arg-type]
    kflats.save(model, tmp_path / "out")
    with torch.device("meta"):
        skeleton = Classifier()
    again = kflats.load(tmp_path / "out", model=skeleton).eval()
    assert not any(each.is_meta for each in [*again.buffers(), *again.parameters()])
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    torch.testing.assert_close(again(IDS), model(IDS))


def test_buffer_that_nobody_can_compute_is_named_before_anything_changes(tmp_path: Path) -> None:
    model = Masked()
    kflats.compress_(model, CompressionConfig(compression=0.4, n_clusters=2))
    kflats.save(model, tmp_path / "out")
    with torch.device("meta"):
        skeleton = Masked()
    with pytest.raises(CheckpointError, match=r"buffers \['mask'\] of Masked are on the meta"):
        kflats.load(tmp_path / "out", model=skeleton)
    assert isinstance(skeleton.bert.get_input_embeddings(), nn.Embedding)
    assert isinstance(kflats.load(tmp_path / "out", model=Masked()), Masked)
