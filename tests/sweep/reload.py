"""What a fresh process gets from the folders that a trial wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.sweep.classes import model_class
from tests.sweep.compare import CLOSE, SAME, difference
from tests.sweep.dense import outputs, said, token_rows
from tests.sweep.forms import FORMS

KINDS = {"compressed": tuple(FORMS), "plain": ("dense", *(f"{form}-dense" for form in FORMS))}
BASE = "load base"
"""Loading a folder with AutoModel, and what its input embeddings give."""


def reload(name: str, folder: Path, kind: str) -> dict[str, list[dict[str, str]]]:
    """Load what is there of a class; return the problems of every form."""
    found: dict[str, list[dict[str, str]]] = {}
    for form in KINDS[kind]:
        if (folder / form / "model").is_dir():
            problems = (_reload(name, folder, form), _reload_base(name, folder, form))
            found[form] = [problem for problem in problems if problem is not None]
    return found


def _reload(name: str, folder: Path, form: str) -> dict[str, str] | None:
    step = "load dense" if form.endswith("-dense") else "load"
    tolerance = CLOSE if form.endswith("-dense") else SAME
    torch.manual_seed(99)  # a tensor that is not in the file must not be repeatable
    try:
        model: Any = _aligned(model_class(name).from_pretrained(folder / form / "model").eval())
        got = outputs(model, torch.load(folder / "inputs.pt", weights_only=False))
        want = torch.load(folder / form / "outputs.pt")
    except Exception as error:  # noqa: BLE001  whatever it is, it is the result
        text = said(error).replace(str(folder), "FOLDER")
        return {"kind": "error", "step": step, "message": text}
    return _differs(step, difference(got, want, tolerance))


def _aligned(model: Any) -> Any:
    """Put the tensors where fresh ones lie: from a mapped file, products sum in another order."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model


def _reload_base(name: str, folder: Path, form: str) -> dict[str, str] | None:
    """Load the folder as the base model of its config, where that is another class."""
    from transformers import AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    kind = model_class(name)
    want = torch.load(folder / form / "rows.pt")
    base = MODEL_MAPPING.get(kind.config_class, None)
    if want is None or base in (None, kind) or form.endswith("-dense"):
        return None
    torch.manual_seed(98)
    try:
        model: Any = AutoModel.from_pretrained(folder / form / "model").eval()
        got = token_rows(model)
    except Exception as error:  # noqa: BLE001
        text = said(error).replace(str(folder), "FOLDER")
        return {"kind": "error", "step": BASE, "message": text}
    found = {} if got is None else {"rows": got}
    return _differs(BASE, difference(found, {"rows": want}, SAME))


def _differs(step: str, apart: str | None) -> dict[str, str] | None:
    return apart and {"kind": "silent difference", "step": step, "message": apart}  # type: ignore[return-value]
