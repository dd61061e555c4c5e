"""Exceptions of kflats.

::

    KflatsError
    ├── InputError (ValueError)           a value given by the caller cannot be used
    │   └── BudgetError                   no rank or number of clusters meets the budget
    ├── UnsupportedModelError (TypeError) the model has a layer that cannot be replaced faithfully
    ├── CheckpointError (OSError)         a folder or file is missing, broken or already there
    └── MissingExtraError (ImportError)   an optional package is not installed

Each class is also the built-in that a caller would expect, so either can be caught.
Messages say what was got, what is allowed and what to do.
"""

from __future__ import annotations


class KflatsError(Exception):
    """Base class of all errors raised on purpose by kflats."""


class InputError(KflatsError, ValueError):
    """A value given by the caller cannot be used."""


class BudgetError(InputError):
    """No rank or number of clusters meets the requested size."""


class UnsupportedModelError(KflatsError, TypeError):
    """The model has a layer that kflats cannot replace without changing what it computes."""


class CheckpointError(KflatsError, OSError):
    """A checkpoint folder or file is missing, broken or already exists."""


class ExportError(KflatsError, RuntimeError):
    """A model cannot be converted, or the result does not compute the same."""


class MissingExtraError(KflatsError, ImportError):
    """An optional dependency is needed and not installed.

    Parameters
    ----------
    package : str
        Name of the missing package.
    extra : str
        The extra of kflats that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package!r} is needed for this and not installed: pip install 'kflats[{extra}]'"
        )
