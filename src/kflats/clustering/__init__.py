"""Projective clustering: k subspaces for the rows of a matrix."""

from kflats.clustering.estimator import ProjectiveClustering
from kflats.clustering.plans import FitProgress

__all__ = ["FitProgress", "ProjectiveClustering"]
