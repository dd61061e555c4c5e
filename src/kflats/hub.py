"""push_to_hub: a compressed model with its card on the Hugging Face Hub."""

from __future__ import annotations

from typing import Any

from torch import nn

from kflats.errors import MissingExtraError
from kflats.files import temporary_folder
from kflats.report import CompressionReport
from kflats.storage.folder import CARD, save


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    report: CompressionReport | None = None,
    commit_message: str = "Upload model compressed by kflats",
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: list[str] | None = None,
    max_shard_size: int | str = "50GB",
) -> str:
    """Upload a compressed model and a complete model card.

    ``model.push_to_hub(...)`` of a transformers model with factorised tables does the same. A card
    that the repository already has is kept.

    Parameters
    ----------
    model : nn.Module
        A model with factorised layers: of transformers, sentence-transformers, or plain.
    repo_id : str
        Name of the repository, created if need be.
    report : CompressionReport, optional
        Kept beside the weights.
    commit_message, commit_description, private, token, revision, create_pr, tags, max_shard_size
        As in transformers.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    InputError
        If the model has no factorised layer.
    """
    try:
        from huggingface_hub import HfApi, ModelCard
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hf") from error
    api = HfApi(token=token)
    with temporary_folder() as place:
        sharded: dict[str, Any] = (
            {"max_shard_size": max_shard_size} if hasattr(model, "push_to_hub") else {}
        )
        name = repo_id.rpartition("/")[2]
        folder = save(model, place / name, report=report, **sharded)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if api.file_exists(repo, CARD, revision=revision):
            (folder / CARD).unlink()
        elif tags:
            card = ModelCard.load(folder / CARD)
            card.data.tags = [*card.data.tags, *tags]
            card.save(folder / CARD)
        commit: Any = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit)
