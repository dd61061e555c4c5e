"""Tests of kflats.hf and of what transformers does with factorised models."""
