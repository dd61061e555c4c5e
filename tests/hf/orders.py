"""Tries orders of imports, each in a process of its own: ``python -m tests.hf.orders FOLDER``.

The processes are forked after the slow imports that no order is about.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module

ORDERS = {
    "kflats, then a submodule": "import kflats; "
    "from transformers.models.bert.modeling_bert import BertModel",
    "transformers first": "from transformers import BertModel; import kflats",
    "in between": "import transformers; import kflats; BertModel = transformers.BertModel",
    "plug-in first": "import kflats.hf; from transformers import BertModel",
}
SLOW = ("huggingface_hub", "safetensors.torch", "sympy", "tokenizers", "torch._dynamo",
        "torch.distributed.checkpoint.hf_storage", "torch.distributed.tensor")  # fmt: skip


def main(folder: str) -> None:
    for name in SLOW:
        import_module(name)
    if {"kflats", "transformers"} & sys.modules.keys():
        raise RuntimeError("an order must not begin with kflats or transformers")
    for name, code in ORDERS.items():
        child = os.fork()
        if not child:
            print(f"{name}: {_layers(code, folder)}", flush=True)  # noqa: T201
            os._exit(0)
        os.waitpid(child, 0)


def _layers(code: str, folder: str) -> str:
    """Return the kind of the token table that a model gets."""
    names: dict[str, object] = {}
    try:
        exec(code, names)
        model = names["BertModel"].from_pretrained(folder)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001  the test shows it
        return traceback.format_exc().replace("\n", "|")
    return type(model.get_input_embeddings()).__name__


if __name__ == "__main__":
    main(sys.argv[1])
