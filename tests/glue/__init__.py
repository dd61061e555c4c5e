"""Tests of kflats.glue."""
