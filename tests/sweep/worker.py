"""One of the three processes of a sweep; every family runs in a fork of it.

``python -m tests.sweep.worker write|compressed|plain FOLDER``: the first compresses and saves, the
second loads what is compressed, the third loads what is dense, without kflats. Families come line
by line, and each is answered by a line when it is done. A fork has imported libraries and done
nothing else, and takes nobody with it when it crashes.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

SECONDS = 60
"""Most seconds for a class."""
MEMORY = 12 * 2**30


def main(kind: str, folder: Path) -> None:
    """Run the families that are asked for, each in a fork."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    _import(kind)
    gc.collect()
    gc.freeze()  # else every fork would walk, and so copy, all that is imported
    for line in sys.stdin:
        _family(kind, folder, line.strip())
        os.write(1, line.encode())


def _import(kind: str) -> None:
    import torch
    import transformers

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    from transformers.models.llama import modeling_llama  # noqa: F401  what all of them import

    from tests.sweep import reload  # noqa: F401
    from tests.sweep.forms import FORMS

    if kind == "plain":
        return
    import kflats

    for config in FORMS.values() if kind == "write" else ():  # imports what a fork would
        model = torch.nn.Sequential(torch.nn.Embedding(300, 32))
        kflats.compress_(model, kflats.CompressionConfig(**config))
        kflats.to_dense_(model)


def _family(kind: str, folder: Path, family: str) -> None:
    from tests.sweep.classes import class_names

    todo = class_names(family)
    while todo:
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)  # what models print is no answer
            _run(kind, folder, todo)
        _wait(child, SECONDS * len(todo))
        done = [name for name in todo if (folder / name / f"{kind}.json").exists()]
        if len(done) == len(todo):
            return
        rest = [name for name in todo if name not in done]
        _put(kind, folder, rest[0], {"crashed": True})
        todo = rest[1:]


def _wait(child: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _run(kind: str, folder: Path, names: list[str]) -> None:
    """In the fork: try the classes, and never come back."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.signal(signal.SIGALRM, _too_long)
        gc.disable()
        for name in names:
            (folder / name).mkdir(parents=True, exist_ok=True)
            signal.alarm(SECONDS)
            result = _one(kind, folder, name)
            signal.alarm(0)
            gc.collect()
            _put(kind, folder, name, result)
    finally:
        os._exit(0)


class _TooLongError(BaseException):
    pass


def _too_long(*_: Any) -> None:
    raise _TooLongError


def _one(kind: str, folder: Path, name: str) -> Any:
    from tests.sweep.reload import reload
    from tests.sweep.trial import run_class

    try:
        if kind == "write":
            return run_class(name, folder / name)
        if kind == "plain" and "kflats" in sys.modules:
            raise RuntimeError("kflats was imported")
        return reload(name, folder / name, kind)
    except _TooLongError:
        return {"too long": SECONDS}
    except Exception:  # noqa: BLE001  a fault of the sweep itself
        return {"fault": traceback.format_exc()[-1500:]}


def _put(kind: str, folder: Path, name: str, result: Any) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / f"{kind}.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
