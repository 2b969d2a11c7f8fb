"""Locks that end with the process that holds them, however it ends: of open files."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock(descriptor: int) -> bool:
    """Take the lock of an open file, which is let go when it is closed; False if it is held.

    Threads and containers exclude each other as processes do: what holds it is the open file.

    Raises
    ------
    OSError
        If there are no locks here: on some network file systems.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
