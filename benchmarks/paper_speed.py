"""Time and error of the default fit against the authors' procedure: takes about ten minutes."""

from __future__ import annotations

import time
from typing import Any

from benchmarks import null_space_messi
from benchmarks.common import median_seconds, minilm_table, squared_relative_error
from benchmarks.fit_speed import N_CLUSTERS, RANK
from kflats import ProjectiveClustering


def measure() -> dict[str, Any]:
    """Measure on the MiniLM table at 40 % compression, k = 5, ten starts of ten steps."""
    table = minilm_table()
    model = ProjectiveClustering(N_CLUSTERS, rank=RANK, random_state=0)
    fit = median_seconds(lambda: model.fit(table))
    begin = time.perf_counter()
    array = table.numpy()
    _, labels = null_space_messi.fit(array, N_CLUSTERS, RANK)
    search = time.perf_counter() - begin
    error = null_space_messi.factor(array, labels, N_CLUSTERS, RANK)
    total = time.perf_counter() - begin
    return {
        "fit_seconds": fit,
        "fit_squared_relative_error": squared_relative_error(model.inertia_, table),
        "paper_search_seconds": search,
        "paper_seconds": total,
        "paper_squared_relative_error": squared_relative_error(error, table),
        "paper_over_fit": total / fit,
    }
