"""Tests of kflats.storage."""
