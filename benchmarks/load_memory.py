"""Peak memory of loading a compressed model and of its first look-up, in a process of its own.

The table is Gemma-3-270M's, 262,144 x 640, at 60 % compression, with a tied head and two layers.
Reads the peak that Linux keeps, after resetting it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COMPRESSION, CLUSTERS = 0.6, 8

_MAKE = """
import sys
import kflats, torch, transformers
from kflats import Budget, FactorizedEmbedding, FactorizedLinear
from kflats.hf import describe_

folder, compression, clusters = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
config = transformers.Gemma3TextConfig(
    vocab_size=262_144, hidden_size=640, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=1, head_dim=64, intermediate_size=1024, pad_token_id=0,
)
model = transformers.Gemma3ForCausalLM(config)
shape = Budget(compression=compression).shape(262_144, 640, n_clusters=clusters)
table = FactorizedEmbedding(shape, padding_idx=0, scale=640**0.5)
torch.nn.init.normal_(table.coefficients, std=0.02)
torch.nn.init.orthogonal_(table.bases)
head = FactorizedLinear(shape)
head.share_with(table)
model.model.embed_tokens, model.lm_head = table, head
describe_(model)
model.save_pretrained(folder)
"""

_LOAD = """
import json, sys
from pathlib import Path
import torch
import kflats
from transformers import Gemma3ForCausalLM

def bytes_of(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

size = sum(path.stat().st_size for path in Path(sys.argv[1]).glob("*.safetensors"))
before = bytes_of("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model = Gemma3ForCausalLM.from_pretrained(sys.argv[1])
loaded = bytes_of("VmHWM") - before
with torch.no_grad():
    model(torch.arange(4)[None])
used = bytes_of("VmHWM") - before
print(json.dumps({
    "file_bytes": size, "dense_table_bytes": 262_144 * 640 * 4,
    "peak_loading_over_file": loaded / size, "peak_after_forward_over_file": used / size,
}))
"""


def measure() -> dict[str, Any]:
    """Make the checkpoint in one process, load and use it in another."""
    with tempfile.TemporaryDirectory() as place:
        folder = str(Path(place) / "model")
        settings = [folder, str(COMPRESSION), str(CLUSTERS)]
        subprocess.run([sys.executable, "-c", _MAKE, *settings], capture_output=True, check=True)
        done = subprocess.run(
            [sys.executable, "-c", _LOAD, folder], capture_output=True, text=True, check=True
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
