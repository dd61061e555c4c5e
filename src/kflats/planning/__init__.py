"""Choosing how to store a table: all methods side by side, at equal bytes."""

from kflats.planning.plan import Plan, plan

__all__ = ["Plan", "plan"]
