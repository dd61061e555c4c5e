"""Tests of kflats.weighting."""
