from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file

import kflats
from kflats import CompressionConfig, InputError
from tests.conftest import tiny_bert


class FakeHub:
    """Keeps what would be uploaded."""

    files: dict[str, bytes]
    has_card = False

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, **settings: Any) -> Any:
        type(self).settings = settings
        return SimpleNamespace(repo_id=f"someone/{repo_id}")

    def file_exists(self, repo_id: str, name: str, revision: str | None = None) -> bool:
        return self.has_card and name == "README.md"

    def upload_folder(self, *, repo_id: str, folder_path: Path, **settings: Any) -> str:
        folder = Path(folder_path)
        type(self).files = {
            path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        return f"https://hub/{repo_id}/{settings['commit_message']}"

    settings: dict[str, Any]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    fresh = type("Fresh", (FakeHub,), {"files": {}})
    monkeypatch.setattr(huggingface_hub, "HfApi", fresh)
    return fresh


def compressed() -> Any:
    model = tiny_bert("BertForMaskedLM")
    kflats.compress_(model, CompressionConfig(compression=0.4, n_clusters=2))
    return model


def test_push_uploads_factors_and_card(hub: type[FakeHub], tmp_path: Path) -> None:
    address = kflats.push_to_hub(compressed(), "me/small", private=True, tags=["tiny"])
    assert address.startswith("https://hub/someone/me/small")
    assert hub.settings["private"] is True
    card = hub.files["README.md"].decode()
    assert "# small" in card
    assert "- tiny" in card
    (tmp_path / "model.safetensors").write_bytes(hub.files["model.safetensors"])
    names = load_file(tmp_path / "model.safetensors")
    assert "bert.embeddings.word_embeddings.kflats_bases" in names


def test_push_of_a_transformers_model_goes_the_same_way(hub: type[FakeHub]) -> None:
    compressed().push_to_hub("small", commit_message="first", max_shard_size="5KB")
    assert "kflats" in hub.files["README.md"].decode()
    assert any("-of-" in name for name in hub.files)


def test_card_of_the_repository_is_kept(hub: type[FakeHub]) -> None:
    hub.has_card = True
    kflats.push_to_hub(compressed(), "small")
    assert "README.md" not in hub.files


def test_dense_model_is_refused(hub: type[FakeHub]) -> None:
    with pytest.raises(InputError, match="no factorised layer"):
        kflats.push_to_hub(tiny_bert(), "small")
    assert hub.files == {}
