"""Tests of kflats.planning."""
