"""What is promised of a model that was saved and loaded, copied, cast or moved.

Every tensor is the same to the bit. Outputs are the same up to the rounding of matrix products:
the libraries that compute them sum in another order where tensors lie at another alignment, as
those of a mapped file do, on another processor, or with another number of threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

ROUNDING = {
    torch.float64: 16 * torch.finfo(torch.float64).eps,
    torch.float32: 16 * torch.finfo(torch.float32).eps,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
}
"""Largest difference relative to the largest number.

The terms of a product are summed in float32 or wider, so that half precision rounds less often.
"""


def fingerprints(model: nn.Module | Mapping[str, Tensor]) -> dict[str, str]:
    """Return dtype, shape and a digest of the bits of every parameter and buffer, by name."""
    tensors = dict(model) if isinstance(model, Mapping) else _tensors(model)
    return {name: _fingerprint(tensor) for name, tensor in tensors.items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict and the buffers that it leaves out."""
    return {**dict(model.named_buffers(remove_duplicate=False)), **model.state_dict()}


def _fingerprint(tensor: Tensor) -> str:
    bits = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(bits).hexdigest()}"


def assert_same_tensors(
    found: nn.Module | Mapping[str, Tensor], expected: nn.Module | Mapping[str, Tensor]
) -> None:
    """Compare all tensors bit for bit."""
    assert fingerprints(found) == fingerprints(expected)


def assert_same_outputs(found: Tensor, expected: Tensor) -> None:
    """Compare within rounding, relative to the largest number."""
    size = ROUNDING[expected.dtype] * float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=size)


def assert_same_model(found: Any, expected: Any, answer: Callable[[Any], Tensor]) -> None:
    """Compare all tensors bit for bit, and what the models answer within rounding."""
    assert_same_tensors(found, expected)
    with torch.no_grad():
        assert_same_outputs(answer(found), answer(expected))
