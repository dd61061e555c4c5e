"""Tests of kflats.report."""
