"""Peak memory of a fit beyond the table, in a process of its own for each size."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SIZES = ((30_522, 384, 5), (262_144, 640, 8))
COMPRESSION = 0.4

_CHILD = """
import json, resource, sys, time
import torch
from kflats import Budget, ProjectiveClustering

n, d, k, compression = json.loads(sys.argv[1])
rank = Budget(compression=compression).shape(n, d, n_clusters=k).rank
generator = torch.Generator().manual_seed(0)
table = torch.empty(n, d)
for begin in range(0, n, 8192):
    block = torch.randn(min(8192, n - begin), d, generator=generator)
    table[begin : begin + 8192] = block * torch.linspace(2.0, 0.1, d)
table @ table[:1].T  # the thread pools of the libraries are not the fit's memory
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
import sklearn.cluster
sklearn.cluster.KMeans(2, n_init=1).fit(table[:500].numpy())
before, start = peak(), time.perf_counter()
model = ProjectiveClustering(k, rank=rank, random_state=0).fit(table)
print(json.dumps({
    "rows": n, "columns": d, "n_clusters": k, "rank": rank,
    "table_bytes": table.numel() * 4, "extra_bytes": peak() - before,
    "extra_over_table": (peak() - before) / (table.numel() * 4),
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
