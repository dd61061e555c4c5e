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
        Name of the missing package; of several, separated by ", ".
    extra : str
        The extra of kflats that brings it.
    instead : str, optional
        What else would do, as the end of a sentence.
    """

    def __init__(self, package: str, extra: str, instead: str = "") -> None:
        *names, last = (repr(name) for name in package.split(", "))
        what = f"{', '.join(names)} and {last} are" if names else f"{last} is"
        super().__init__(
            f"{what} needed for this and not installed: in the folder of kflats, run "
            f"{install_line(extra)}{instead and f', or {instead}'}"
        )


def install_line(extra: str) -> str:
    """Return the command that adds an extra, for the root of a checkout."""
    return f"pip install -c constraints.txt -e '.[{extra}]'"
