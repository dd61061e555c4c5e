"""Results: what a compression or healing did, with provenance, and pictures of it."""

from kflats.report.compression import CompressionReport, TableReport
from kflats.report.healing import HealingReport

__all__ = ["CompressionReport", "HealingReport", "TableReport"]
