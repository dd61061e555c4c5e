"""Results: what a compression did, with provenance, and pictures of it."""

from kflats.report.compression import CompressionReport, TableReport

__all__ = ["CompressionReport", "TableReport"]
