"""A sweep over the model classes of transformers: what kflats does to each, beside the dense model.

``python -m tests.sweep`` runs all, ``python -m tests.sweep --only bert,clip`` some families.
"""
