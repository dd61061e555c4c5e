"""Training of compressed models: what trains, and learning from the dense model."""

from kflats.training.healing import heal_
from kflats.training.selection import set_trainable

__all__ = ["heal_", "set_trainable"]
