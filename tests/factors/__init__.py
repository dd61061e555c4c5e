"""Tests of kflats.factors."""
