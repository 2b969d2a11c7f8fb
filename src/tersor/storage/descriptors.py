"""What open files do beyond Python's file objects: locks, and reading and writing anywhere."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_CLOSED = -1


def lock(descriptor: int) -> bool:
    """Take the lock of an open file; False if it is held.

    It is let go when the file is closed or the process ends, however it does. Threads and
    containers exclude each other as processes do: what holds it is the open file.

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


def lock_if_any(descriptor: int) -> bool:
    """Take the lock of an open file if there are locks; False if it is held."""
    try:
        return lock(descriptor)
    except OSError:
        return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def read_at(descriptor: int, start: int, size: int) -> bytes:
    """Bytes of an open file from there on; fewer where it ends, and never a fault."""
    parts: list[bytes] = []
    while size and (part := os.pread(descriptor, size, start)):
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class FileBytes:
    """Bytes of a file, read when they are asked for; safe to use from several threads.

    A mapped file would do the same, but ends the process if somebody else cuts it off.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._size = os.fstat(self._descriptor).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        if self._descriptor == _CLOSED:
            raise ValueError("the file is closed")
        start, stop, _ = part.indices(self._size)
        return read_at(self._descriptor, start, max(stop - start, 0))

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor != _CLOSED:
            descriptor, self._descriptor = self._descriptor, _CLOSED
            os.close(descriptor)

    __del__ = close


def write_at(descriptor: int, start: int, content: bytes) -> None:
    """Write all of these bytes at a place of an open file."""
    left = memoryview(content)
    while left:
        written = os.pwrite(descriptor, left, start)
        start, left = start + written, left[written:]
