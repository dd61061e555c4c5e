"""Tests of kflats.quantization."""
