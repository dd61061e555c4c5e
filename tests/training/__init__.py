"""Tests of kflats.training."""
