# SPDX-License-Identifier: Apache-2.0
"""Lock open files, and read and write them at any position."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_CLOSED = -1


def lock(descriptor: int) -> bool:
    """Take the lock of an open file.

    The lock ends when the file is closed or the process ends, in whatever way. It belongs to the
    open file, so that threads and containers exclude each other like processes.

    Returns
    -------
    bool
        False if the lock is taken already.

    Raises
    ------
    OSError
        If the file system has no locks, as some network file systems.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_if_any(descriptor: int) -> bool:
    """Take the lock of an open file if the file system has locks; return False if it is taken."""
    try:
        return lock(descriptor)
    except OSError:
        return True


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the file at that path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def read_at(descriptor: int, start: int, size: int) -> bytes:
    """Return ``size`` bytes of an open file from ``start`` on, or fewer if the file ends."""
    parts: list[bytes] = []
    while size and (part := os.pread(descriptor, size, start)):
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_into(descriptor: int, start: int, buffer: memoryview) -> int:
    """Fill a buffer with bytes of an open file from ``start`` on; return how many there were."""
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], start + done)
        if not count:
            break
        done += count
    return done


class FileBytes:
    """Bytes of a file that are read when they are indexed; safe to use from several threads.

    A mapped file would offer the same, but the process dies if somebody else truncates that file.

    Parameters
    ----------
    path
        The file.
    part
        First byte and number of bytes, where only a part of the file is meant.
    """

    def __init__(self, path: Path, part: tuple[int, int] | None = None) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._first, self._size = part or (0, os.fstat(self._descriptor).st_size)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        if self._descriptor == _CLOSED:
            raise ValueError("the file is closed")
        start, stop, _ = part.indices(self._size)
        return read_at(self._descriptor, self._first + start, max(stop - start, 0))

    def close(self) -> None:
        """Close the file."""
        if self._descriptor != _CLOSED:
            descriptor, self._descriptor = self._descriptor, _CLOSED
            os.close(descriptor)

    __del__ = close


def write_at(descriptor: int, start: int, content: bytes) -> None:
    """Write all of these bytes at position ``start`` of an open file."""
    left = memoryview(content)
    while left:
        written = os.pwrite(descriptor, left, start)
        start, left = start + written, left[written:]
