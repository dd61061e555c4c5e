"""Measurements of kflats: ratios in one process, medians of several runs, results with provenance.

``python -m benchmarks`` runs all, ``python -m benchmarks fit_speed`` one. Every run writes
``benchmarks/results/<name>.json``.
"""
