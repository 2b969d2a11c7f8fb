# SPDX-License-Identifier: Apache-2.0
"""Store results of long work in a file beside the output until the work is done."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from tersor.errors import BudgetError
from tersor.storage.descriptors import is_at, lock_if_any, read_at, write_at

_MAGIC = b"\x93TERSOR journal\n"

_FRAME = struct.Struct("<QQ16s")
"""Fields before a record: bytes of its key, bytes of its value, digest of these sizes and both."""

_CLOSED = -1

FULL = {errno.ENOSPC, errno.EDQUOT}
"""Errors of a disk that is full, for all or for this user."""


class Journal:
    """Results by key, written to a file as they come, which survive if the process is killed.

    A record that was only half written is dropped. Digests are keyed with the identity, so that
    records of other work count as damaged. Only one process at a time uses the file. If the file
    cannot be written, is a link or is not a journal, the work continues without it. If the disk is
    full, the file is removed too, because the output needs the space.

    Parameters
    ----------
    path
        The file; it is created with the first result.
    identity
        A text for everything that the results depend on, by the name that the user sees. If the
        file exists with another identity, the first result replaces its content.

    Attributes
    ----------
    note
        A message for the user about an earlier file or a failure; None if there is nothing to say.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path = path
        self.note: str | None = None
        self._identity = dict(identity)
        self._head = json.dumps(self._identity, sort_keys=True).encode()
        self._seal = blake2b(self._head, digest_size=32).digest()
        self._places: dict[str, int] = {}
        self._descriptor, self._end = _CLOSED, 0
        self._lock, self._given_up = Lock(), False
        with self._giving_up(), suppress(FileNotFoundError):
            self._descriptor = _open(path)
            self._resume()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> bytes | None:
        """Return the result of that key, or None if there is none or its record is damaged."""
        with self._lock:
            if key not in self._places:
                return None
            record = _record(self._descriptor, self._places[key], self._seal)
            return record.value if record and record.key == key else None

    def put(self, key: str, value: bytes) -> None:
        """Add a result; safe to call from several threads.

        Parameters
        ----------
        key
            Name of the result.
        value
            The result as bytes.
        """
        with self._lock:
            if self._given_up:
                return
            with self._giving_up():
                if self._descriptor == _CLOSED:
                    self._descriptor = _open(self.path, os.O_CREAT)
                if not self._end:
                    self._begin()
                start = self._end
                self._append(key, value, self._seal)
                self._places[key] = start
            if not self._places:  # not even one record could be written
                self._let_go(remove=True)

    @property
    def nbytes(self) -> int:
        """Return the bytes that the file takes."""
        return self._end if self._descriptor != _CLOSED else 0

    def make_room(self, reason: str) -> None:
        """Remove the file, so that its space is free for the output, and warn of what that means.

        The work goes on without a journal. The results so far are not found any more.

        Parameters
        ----------
        reason
            Reason, for the warning.
        """
        with self._lock:
            self._make_room(reason)

    def close(self, *, remove: bool) -> None:
        """Close the file, and remove it if ``remove`` is set."""
        with self._lock:
            self._places.clear()
            self._let_go(remove=remove)

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Stop adding records after an error, keep the earlier ones, and let the work continue."""
        try:
            yield
        except OSError as error:
            self._given_up = True
            self.note = f"results are not kept for a later run in {self.path}: {error.strerror}"
            if error.errno in FULL | {errno.EFBIG}:
                self._make_room(f"{error.strerror}")

    def _make_room(self, reason: str) -> None:
        self._given_up = True
        self._places.clear()
        if self._descriptor != _CLOSED:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
        self._let_go(remove=True)
        warnings.warn(
            f"{self.path}: {reason}. The file is removed to leave its space to the output, and the "
            "work goes on without it; if it is interrupted now, it starts anew. To keep results "
            "for a later run, free some space, or write to another disk",
            stacklevel=5,
        )

    def _resume(self) -> None:
        """Find the results of an earlier process."""
        head = _record(self._descriptor, len(_MAGIC), b"")
        try:
            before = json.loads(head.value) if head else {}
        except (ValueError, RecursionError):
            before = {}
        if not head or before != self._identity:
            self.note = _difference(before, self._identity)
            return
        self._end = head.end
        while record := _record(self._descriptor, self._end, self._seal):
            self._places[record.key] = self._end
            self._end = record.end
        self.note = f"continuing an interrupted run: {len(self)} results are there already"

    def _begin(self) -> None:
        os.ftruncate(self._descriptor, 0)
        write_at(self._descriptor, 0, _MAGIC)
        self._end = len(_MAGIC)
        self._append("", self._head, b"")

    def _append(self, key: str, value: bytes, seal: bytes) -> None:
        name = key.encode()
        frame = _FRAME.pack(len(name), len(value), _digest(name, value, seal))
        content = frame + name + value
        write_at(self._descriptor, self._end, content)
        self._end += len(content)

    def _let_go(self, *, remove: bool) -> None:
        if self._descriptor == _CLOSED:
            return
        if remove and is_at(self._descriptor, self.path):
            with suppress(OSError):  # a left-over journal of a finished run does no harm
                self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = _CLOSED


def _open(path: Path, create: int = 0) -> int:
    """Open a journal for this process alone, and refuse any other kind of file.

    Parameters
    ----------
    path
        The journal.
    create
        ``os.O_CREAT`` to create the file if it does not exist; 0 otherwise.

    Raises
    ------
    OSError
        If the file cannot be written, is not a journal, or is used by another process.
    """
    while True:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link; remove it")
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | create, 0o666)
        flaw = _flaw(descriptor)
        if not flaw and is_at(descriptor, path):  # otherwise another process has just removed it
            return descriptor
        os.close(descriptor)
        if flaw:
            raise OSError(errno.EEXIST, flaw)


def _flaw(descriptor: int) -> str | None:
    """Lock an open journal; return why the file cannot be used, or None if it can."""
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    if not regular or not _MAGIC.startswith(read_at(descriptor, 0, len(_MAGIC))):
        return "it is another file; rename it"
    return None if lock_if_any(descriptor) else "another process works on the same output"


class _Record(NamedTuple):
    """A record of the file, and the position where it ends."""

    key: str
    value: bytes
    end: int


def _record(descriptor: int, start: int, seal: bytes) -> _Record | None:
    """Return the record at a position, or None if it is incomplete or damaged."""
    frame = read_at(descriptor, start, _FRAME.size)
    if len(frame) < _FRAME.size:
        return None
    key_size, value_size, digest = _FRAME.unpack(frame)
    size = key_size + value_size
    if size > os.fstat(descriptor).st_size:  # checked before memory is allocated for it
        return None
    content = read_at(descriptor, start + len(frame), size)
    key, value = content[:key_size], content[key_size:]
    if len(content) < size or _digest(key, value, seal) != digest:
        return None
    return _Record(key.decode(errors="replace"), value, start + len(frame) + size)


def _digest(key: bytes, value: bytes, seal: bytes) -> bytes:
    digest = blake2b(struct.pack("<QQ", len(key), len(value)), digest_size=16, key=seal)
    digest.update(key)
    digest.update(value)
    return digest.digest()


def _difference(before: object, now: Mapping[str, str]) -> str:
    if not isinstance(before, dict) or not before:
        return "starting anew: what an interrupted run has left is damaged"
    changed = [name for name, value in now.items() if before.get(name) != value]
    return f"starting anew: since the interrupted run there was a change in {' and '.join(changed)}"


@contextmanager
def journaling(path: Path, identity: Mapping[str, str]) -> Iterator[Journal]:
    """Yield a journal, and remove it when the work is done or turns out to be impossible.

    Any other error leaves the journal for a later run.

    Parameters
    ----------
    path, identity
        As in `Journal`.
    """
    journal, remove = Journal(path, identity), False
    try:
        yield journal
        remove = True
    except BudgetError:
        remove = True
        raise
    finally:
        journal.close(remove=remove)
