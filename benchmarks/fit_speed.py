"""Time of the whole default fit against one thin SVD of the same table."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.common import median_seconds, minilm_table, squared_relative_error
from kflats import ProjectiveClustering

N_CLUSTERS, RANK = 5, 216
ROUNDS = 5


def measure() -> dict[str, Any]:
    """Measure on the MiniLM table at 40 % compression, k = 5, ``random_state=0``."""
    table = minilm_table()
    model = ProjectiveClustering(N_CLUSTERS, rank=RANK, random_state=0)
    svd, fit = [], []
    for _ in range(ROUNDS):
        # In turn, so that a drifting machine slows both.
        svd.append(median_seconds(lambda: torch.linalg.svd(table, full_matrices=False), 3))
        fit.append(median_seconds(lambda: model.fit(table), 3))
    ratios = sorted(f / s for f, s in zip(fit, svd, strict=True))
    return {
        "svd_seconds": sorted(svd)[ROUNDS // 2],
        "fit_seconds": sorted(fit)[ROUNDS // 2],
        "fit_over_svd": ratios[ROUNDS // 2],
        "fit_over_svd_min_max": [ratios[0], ratios[-1]],
        "fit_squared_relative_error": squared_relative_error(model.inertia_, table),
    }
