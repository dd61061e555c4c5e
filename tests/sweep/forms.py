"""The forms of compression that the sweep tries."""

from __future__ import annotations

from typing import Any

FORMS: dict[str, dict[str, Any]] = {
    "flats": {"compression": 0.4, "n_clusters": 2, "effort": "fast"},
    "codes": {"bits": 4.0, "exact_ids": (3,), "options": {"rotated": False, "width": 3}},
}
"""Arguments of :class:`kflats.CompressionConfig` by name; effort and options only save time.

The exact row gives the table groups, and so labels.
"""
