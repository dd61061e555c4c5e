"""Tests of kflats.layers."""
