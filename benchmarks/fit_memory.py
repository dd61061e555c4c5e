"""Peak memory of a fit beyond what was resident, in a process of its own for each size.

Reads the peak that Linux keeps, after resetting it, so that imports and the making of the table
do not hide or add anything.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SIZES = ((30_522, 384, 5), (262_144, 640, 8))
COMPRESSION = 0.4

_CHILD = """
import json, sys, time
from pathlib import Path
import torch
from kflats import Budget, ProjectiveClustering

n, d, k, compression = json.loads(sys.argv[1])
rank = Budget(compression=compression).shape(n, d, n_clusters=k).rank
generator = torch.Generator().manual_seed(0)
table = torch.empty(n, d)
for begin in range(0, n, 8192):
    block = torch.randn(min(8192, n - begin), d, generator=generator)
    table[begin : begin + 8192] = block * torch.linspace(2.0, 0.1, d)

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

# What the libraries set up at their first call is not the fit's memory.
ProjectiveClustering(2, rank=2, random_state=0).fit(table[:500])
before, start = kilobytes("VmRSS"), time.perf_counter()
Path("/proc/self/clear_refs").write_text("5")
model = ProjectiveClustering(k, rank=rank, random_state=0).fit(table)
extra = 1024 * (kilobytes("VmHWM") - before)
print(json.dumps({
    "rows": n, "columns": d, "n_clusters": k, "rank": rank,
    "table_bytes": table.numel() * 4, "extra_bytes": extra,
    "extra_over_table": extra / (table.numel() * 4),
    "seconds": time.perf_counter() - start, "n_iter": model.n_iter_,
}))
"""


def measure() -> dict[str, Any]:
    """Fit tables of two sizes at 40 % compression; the second is Gemma-3-270M's."""
    results = {}
    for n, d, k in SIZES:
        arguments = json.dumps([n, d, k, COMPRESSION])
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, arguments], capture_output=True, text=True, check=True
        )
        results[f"{n}x{d}"] = json.loads(done.stdout)
    return results
