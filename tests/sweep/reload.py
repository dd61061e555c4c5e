"""What a fresh process gets from the folders that a trial wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.sweep.classes import model_class
from tests.sweep.compare import CLOSE, SAME, difference
from tests.sweep.dense import outputs, said
from tests.sweep.forms import FORMS

KINDS = {"compressed": tuple(FORMS), "plain": ("dense", *(f"{form}-dense" for form in FORMS))}


def reload(name: str, folder: Path, kind: str) -> dict[str, list[dict[str, str]]]:
    """Load what is there of a class; return the problems of every form."""
    found: dict[str, list[dict[str, str]]] = {}
    for form in KINDS[kind]:
        if (folder / form / "model").is_dir():
            problem = _reload(name, folder, form)
            found[form] = [] if problem is None else [problem]
    return found


def _reload(name: str, folder: Path, form: str) -> dict[str, str] | None:
    step = "load dense" if form.endswith("-dense") else "load"
    tolerance = CLOSE if form.endswith("-dense") else SAME
    torch.manual_seed(99)  # a tensor that is not in the file must not be repeatable
    try:
        model: Any = model_class(name).from_pretrained(folder / form / "model").eval()
        got = outputs(model, torch.load(folder / "inputs.pt", weights_only=False))
        want = torch.load(folder / form / "outputs.pt")
    except Exception as error:  # noqa: BLE001  whatever it is, it is the result
        text = said(error).replace(str(folder), "FOLDER")
        return {"kind": "error", "step": step, "message": text}
    apart = difference(got, want, tolerance)
    return apart and {"kind": "silent difference", "step": step, "message": apart}  # type: ignore[return-value]
