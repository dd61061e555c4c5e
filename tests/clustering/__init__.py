"""Tests of kflats.clustering."""
