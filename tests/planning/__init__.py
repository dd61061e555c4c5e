"""Tests of what looks at a table before compressing it."""
