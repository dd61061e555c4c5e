"""Optional packages: asked for by name before long work begins."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from kflats.errors import MissingExtraError


def need(extra: str, *packages: str, instead: str = "") -> None:
    """Check that packages are installed, without importing them.

    Parameters
    ----------
    extra : str
        The extra of kflats that brings them.
    *packages : str
        Names to import them by.
    instead : str, optional
        What else would do, for the message.

    Raises
    ------
    MissingExtraError
        Naming those that are not installed.

    Examples
    --------
    >>> need("train", "torch")
    >>> need("train", "torch", "no_such_package")
    Traceback (most recent call last):
    kflats.errors.MissingExtraError: 'no_such_package' is needed ...
    """
    missing = [name for name in packages if not _is_there(name)]
    if missing:
        raise MissingExtraError(", ".join(missing), extra, instead)


def _is_there(name: str) -> bool:
    return sys.modules.get(name) is not None or find_spec(name) is not None
