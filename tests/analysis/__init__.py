"""Tests of kflats.analysis."""
