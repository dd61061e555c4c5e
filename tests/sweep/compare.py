"""How far two results are apart."""

from __future__ import annotations

import torch
from torch import Tensor

CLOSE, SAME = 5e-4, 1e-5
"""Of the largest number: for other ways to compute, and for the same after loading."""


def difference(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> str | None:
    """Return in words how ``got`` differs from ``want``, or None."""
    if got.keys() != want.keys():
        return f"outputs {sorted(got)}, expected {sorted(want)}"
    worst, where = 0.0, ""
    for name, expected in want.items():
        found = got[name]
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return (
                f"{name}: {tuple(found.shape)} {found.dtype}, expected {tuple(expected.shape)} "
                f"{expected.dtype}"
            )
        if not torch.equal(found.isfinite(), expected.isfinite()):
            return f"{name}: other numbers are not finite"
        apart = relative(found, expected)
        if apart > worst:
            worst, where = apart, name
    return f"{where}: {worst:.1e} of the largest number" if worst > tolerance else None


def relative(got: Tensor, want: Tensor) -> float:
    """Return the largest difference of the finite numbers, relative to the largest of them."""
    finite = want.isfinite()
    if not bool(finite.any()):
        return 0.0
    a, b = got[finite].double(), want[finite].double()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-6))


def gradient_difference(got: dict[str, Tensor], want: dict[str, Tensor]) -> str | None:
    """Return in words how gradients differ, relative to the largest of all, or None."""
    size = max((float(each.abs().max()) for each in want.values() if each.numel()), default=0.0)
    for name, expected in want.items():
        zero = torch.zeros_like(expected)
        apart = float((got.get(name, zero) - expected).abs().max()) if expected.numel() else 0.0
        if apart > 1e-3 * max(size, 1e-6):
            return f"gradient of {name}: {apart / max(size, 1e-6):.1e} of the largest"
    return None
