"""Writing a file whole or not at all, and temporary folders that no kill leaves for ever.

A temporary folder holds a lock file, locked for as long as its process lives: the kernel lets go
of it however the process ends. The next run beside removes those that it can lock itself. The
name holds the host, because on some network file systems a lock is seen on its own host only:
folders of other hosts are left alone, and so are all where files cannot be locked.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from kflats.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

_LOCK, _INSIDE = "lock", "new"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to that becomes ``path`` when the block ends without error.

    Raises
    ------
    CheckpointError
        If the place cannot be written. Nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path.parent, path.name) as folder:
            partial = folder / path.name
            yield partial
            partial.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}.") from error


@contextmanager
def temporary_folder(place: Path | None = None, name: str = "") -> Iterator[Path]:
    """Give an empty folder that is removed when the block ends, unless the block has moved it.

    What killed processes left in the same place, and in that for temporary files, is removed
    first.

    Parameters
    ----------
    place : Path, optional
        A folder to make it in; None means that for temporary files.
    name : str, default=''
        What it is for; becomes part of its name.

    Raises
    ------
    OSError
        If the place cannot be written.
    """
    if place is None:
        place = Path(tempfile.gettempdir())
    sweep(place)
    with suppress(OSError):  # where there is none, none is needed
        sweep(Path(tempfile.gettempdir()))
    folder, lock = _locked_folder(place, name)
    try:
        inside = folder / _INSIDE
        inside.mkdir()
        yield inside
    finally:
        _remove(folder)
        os.close(lock)


def sweep(place: Path) -> None:
    """Remove the temporary folders in a place whose process, on this host, is gone."""
    with suppress(OSError):
        for folder in [each for each in place.iterdir() if _mark() in each.name]:
            with suppress(OSError):
                _sweep(folder)


def _sweep(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (sys.platform != "win32" and found.st_uid != os.getuid()):
        return  # whatever lies in a place that all can write, only our own is removed
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        folder.rmdir()  # killed before it was locked, or being made: then it is made again
        return
    try:
        if _take(lock):
            _remove(folder)
    finally:
        os.close(lock)


def _locked_folder(place: Path, name: str) -> tuple[Path, int]:
    """Return a new folder and its lock file, open and locked."""
    mark = _mark()
    while True:
        # Names have at most 255 bytes, characters up to four.
        folder = Path(tempfile.mkdtemp(prefix=f".{name[:40]}{mark}", dir=place))
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            continue  # swept before it was locked
        taken = _take(lock)
        if taken is None:
            mark = _UNMARKED
        if taken or _UNMARKED in folder.name:
            with suppress(FileNotFoundError):
                if os.path.samestat((folder / _LOCK).stat(), os.fstat(lock)):
                    return folder, lock
        os.close(lock)
        _remove(folder)


_UNMARKED = ".kflats-unlocked-"
"""In the names of folders that no sweep may touch, since nothing can be locked where they are."""


def _take(lock: int) -> bool | None:
    """Lock a file without waiting; False if another process has, None if it cannot be done."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True


def _remove(folder: Path) -> None:
    """Remove a temporary folder; the lock file last, so that the next sweep finds what is left."""
    inside = folder / _INSIDE
    shutil.rmtree(inside, ignore_errors=True)
    if not inside.exists():
        with suppress(OSError):
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()


@cache
def _mark() -> str:
    """Return what the names of temporary folders of this host have in common."""
    host = socket.gethostname()
    for place in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        with suppress(OSError):
            if identity := Path(place).read_text(encoding="utf-8").strip():
                host += identity
                break
    return f".kflats-{hashlib.blake2s(host.encode(), digest_size=4).hexdigest()}-"
