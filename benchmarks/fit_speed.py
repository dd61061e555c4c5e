"""Time of the whole default fit against one thin SVD of the same table."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.common import median_seconds, minilm_table, squared_relative_error
from kflats import CompressionConfig, ProjectiveClustering
from kflats.factors.fit import factorize

N_CLUSTERS, RANK = 5, 216
ROUNDS = 3


def measure() -> dict[str, Any]:
    """Measure on the MiniLM table at 40 % compression, k = 5, ``random_state=0``; and flats.

    The times of flats are least, median and largest over the rounds.
    """
    table = minilm_table()
    model = ProjectiveClustering(N_CLUSTERS, rank=RANK, random_state=0)
    efforts: dict[str, list[float]] = {}
    svd, fit = [], []
    for _ in range(ROUNDS):
        # In turn, so that a drifting machine slows both.
        svd.append(median_seconds(lambda: torch.linalg.svd(table, full_matrices=False), 3))
        fit.append(median_seconds(lambda: model.fit(table), 3))
        for effort in ("fast", "thorough"):
            for compression in (0.2, 0.4, 0.6):
                config = CompressionConfig(compression=compression, effort=effort)
                run = partial(factorize, table, config)
                name = f"{effort}, {compression:.0%}"
                efforts.setdefault(name, []).append(median_seconds(run, 1) / svd[-1])
    ratios = sorted(f / s for f, s in zip(fit, svd, strict=True))
    return {
        "svd_seconds": sorted(svd)[ROUNDS // 2],
        "fit_seconds": sorted(fit)[ROUNDS // 2],
        "fit_over_svd": ratios[ROUNDS // 2],
        "fit_over_svd_min_max": [ratios[0], ratios[-1]],
        "flats_over_svd": {
            name: [round(value, 1) for value in (min(found), median(found), max(found))]
            for name, found in efforts.items()
        },
        "fit_squared_relative_error": squared_relative_error(model.inertia_, table),
    }
