"""Looking at a table before compressing it: spectrum, and error against size."""
