"""Compressed models on disk: a folder of safetensors and JSON, written whole or not at all."""

from kflats.storage.folder import load, save

__all__ = ["load", "save"]
