"""Planted subspaces with gross outliers: which losses find them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kflats import ProjectiveClustering
from kflats.clustering.losses import LOSSES

N_CLUSTERS, RANK, COLUMNS, ROWS = 3, 3, 20, 600


def measure() -> dict[str, Any]:
    """Return, per loss, the largest principal angle to the planted subspaces, in degrees."""
    results = {}
    for name in LOSSES:
        angles = []
        for seed in range(3):
            rows, planted = _planted(seed)
            model = ProjectiveClustering(
                N_CLUSTERS, rank=RANK, loss=name, n_init=5, tol=1e-6, random_state=seed
            ).fit(rows)
            angles.append(max(min(_angle(v, b) for v in model.bases_) for b in planted))
        results[name] = {"largest_angle": [round(angle, 1) for angle in angles]}
    return results


def _planted(seed: int) -> tuple[Tensor, list[Tensor]]:
    """Return rows near three subspaces, 20 % of all rows outliers five times as long."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    planted = [torch.linalg.qr(draw(COLUMNS, RANK))[0] for _ in range(N_CLUSTERS)]
    inliers = torch.cat([draw(ROWS // N_CLUSTERS, RANK) @ basis.T for basis in planted])
    noise = 0.01 * draw(ROWS, COLUMNS)
    return torch.cat([inliers + noise, 2 * draw(ROWS // 4, COLUMNS)]), planted


def _angle(basis: Tensor, planted: Tensor) -> float:
    cosine = float(torch.linalg.svdvals(basis @ planted)[-1])
    return math.degrees(math.acos(min(1.0, cosine)))
