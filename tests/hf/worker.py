"""Loads the models of a folder in a process of its own and writes down what they answer.

``python -m tests.hf.worker compressed|dense FOLDER``: models are ``FOLDER/<name>``, results go to
``FOLDER/answers.safetensors`` and ``FOLDER/facts.json``. Dense models are loaded without kflats,
which is also tried with the compressed ones in the folder beside.
"""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.hf.architectures import ARCHITECTURES, answers, readers_of
from tests.promises import fingerprints

Results = dict[str, tuple[dict[str, Any], dict[str, Tensor]]]


def start(kind: str, folder: Path) -> subprocess.Popen[str]:
    """Begin to load all models of a folder in a fresh process."""
    command = [sys.executable, "-m", "tests.hf.worker", kind, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def results(process: subprocess.Popen[str], folder: Path) -> Results:
    """Wait for a process; return facts and answers by name."""
    from safetensors.torch import load_file

    _, errors = process.communicate(timeout=200)
    if process.returncode:
        raise RuntimeError(errors[-2000:])
    facts = json.loads((folder / "facts.json").read_text())
    tensors = load_file(folder / "answers.safetensors")
    return {
        name: (found, {k.split()[1]: v for k, v in tensors.items() if k.split()[0] == name})
        for name, found in facts.items()
    }


def main(kind: str, folder: Path) -> None:
    if kind == "compressed":
        import kflats  # noqa: F401  all that a user does
    facts: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name in [name for name in ARCHITECTURES if (folder / name).is_dir()]:
        torch.manual_seed(os.getpid())  # a tensor that is not in the file must not be repeatable
        try:
            facts[name], found = _load(name, folder)
        except Exception as error:  # noqa: BLE001  one row must not hide the others
            facts[name], found = {"error": f"{type(error).__name__}: {error}"}, {}
        tensors |= {f"{name} {key}": value.contiguous() for key, value in found.items()}
        if kind == "compressed":
            continue
        facts[name]["without kflats"] = _refusal(name, folder.parent / "compressed")
    if kind == "dense" and "kflats" in sys.modules:
        raise RuntimeError("kflats was imported")
    _write(folder, facts, tensors)


def _load(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    import transformers

    auto = getattr(transformers, ARCHITECTURES[name].auto)
    model, info = auto.from_pretrained(folder / name, output_loading_info=True)
    facts = {
        "class": type(model).__name__,
        "unlike the file": {key: sorted(map(str, value)) for key, value in info.items() if value},
        "tensors": fingerprints(model),
        "readers": readers_of(model) if "kflats" in sys.modules else [],
    }
    return facts, answers(model)


def _refusal(name: str, folder: Path) -> list[str]:
    """Return the error of loading a compressed model without kflats, and what it names."""
    from transformers import AutoModel

    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("transformers").addHandler(handler)
    try:
        AutoModel.from_pretrained(folder / name)
    except Exception as error:  # noqa: BLE001  whatever it is, it goes into the results
        words = ("got kflats", "kflats_bases", "MISMATCH")
        return [type(error).__name__, *(word for word in words if word in said.getvalue())]
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    return ["a model"]


def _write(folder: Path, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "answers.safetensors")
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
