"""Results of long work, kept in a file beside the output until the work is done."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from tersor.errors import TersorError

_FRAME = struct.Struct("<III")
"""Before a record: bytes of its key, bytes of its value, CRC-32 of both."""


class Journal:
    """Results by key, appended as they come, which outlive a process that is killed.

    A record that was only half written when that happened is dropped. Checksums begin with one of
    the identity, so that records of other work, which another process may still be writing to the
    same file, count as damaged. If the file cannot be written, work goes on without.

    Parameters
    ----------
    path
        The file; it is made with the first result.
    identity
        What the results depend on, by what it is called. If the file is there, but of another
        identity, it is removed.

    Attributes
    ----------
    note
        What became of an earlier file, for the user; None if there was none.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path = path
        self.note: str | None = None
        self._identity = dict(identity)
        self._seed = zlib.crc32(json.dumps(self._identity, sort_keys=True).encode())
        self._places: dict[str, tuple[int, int]] = {}
        self._file: BinaryIO | None = None
        self._lock, self._given_up = Lock(), False
        with suppress(OSError):  # one that cannot be opened cannot be written either
            if path.is_file():
                self._resume()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> bytes | None:
        """The result of that key; None if there is none."""
        with self._lock:
            if self._file is None or key not in self._places:
                return None
            start, size = self._places[key]
            self._file.seek(start)
            return self._file.read(size)

    def put(self, key: str, value: bytes) -> None:
        """Add a result; safe to call from several threads."""
        with self._lock:
            if self._given_up:
                return
            try:
                if self._file is None:
                    self._file = self.path.open("a+b")
                    self._append("", json.dumps(self._identity).encode(), 0)
                start = self._append(key, value, self._seed)
                self._places[key] = start, len(value)
            except OSError:  # a full disk shall not end what might still fit
                self._given_up = True
                self._remove()

    def close(self, *, remove: bool) -> None:
        """Close the file, and remove it if the work is done."""
        with self._lock:
            if remove:
                self._remove()
            elif self._file is not None:
                self._file.close()

    def _append(self, key: str, value: bytes, seed: int) -> int:
        """Write a record; returns where its value starts."""
        assert self._file is not None
        name = key.encode()
        checksum = zlib.crc32(value, zlib.crc32(name, seed))
        self._file.write(_FRAME.pack(len(name), len(value), checksum) + name + value)
        self._file.flush()
        return self._file.tell() - len(value)

    def _resume(self) -> None:
        """Read where the results of an earlier process are, or remove its file."""
        self._file = self.path.open("a+b")
        self._file.seek(0)
        head = _record(self._file, 0)
        try:
            before = json.loads(head[1]) if head else {}
        except ValueError:
            before = {}
        if before != self._identity:
            self.note = _difference(before, self._identity)
            self._remove()
            return
        end = self._file.tell()
        while record := _record(self._file, self._seed):
            end = self._file.tell()
            self._places[record[0]] = end - len(record[1]), len(record[1])
        self._file.truncate(end)
        self.note = f"continuing an interrupted run: {len(self)} results are there already"

    def _remove(self) -> None:
        self._places.clear()
        if self._file is not None:
            with suppress(OSError):  # closing flushes what a full disk did not take
                self._file.close()
            self._file = None
            self.path.unlink(missing_ok=True)


def _record(file: BinaryIO, seed: int) -> tuple[str, bytes] | None:
    """The next record; None if it is incomplete or damaged."""
    frame = file.read(_FRAME.size)
    if len(frame) < _FRAME.size:
        return None
    key_size, value_size, checksum = _FRAME.unpack(frame)
    key, value = file.read(key_size), file.read(value_size)
    if len(value) < value_size or zlib.crc32(value, zlib.crc32(key, seed)) != checksum:
        return None
    return key.decode(errors="replace"), value


def _difference(before: object, now: Mapping[str, str]) -> str:
    if not isinstance(before, dict) or not before:
        return "starting anew: what an interrupted run has left is damaged"
    changed = [name for name, value in now.items() if before.get(name) != value]
    return f"starting anew: since the interrupted run there was a change in {' and '.join(changed)}"


@contextmanager
def journaling(path: Path, identity: Mapping[str, str]) -> Iterator[Journal]:
    """A journal that is removed when the work is done, or is found to be impossible."""
    journal, remove = Journal(path, identity), False
    try:
        yield journal
        remove = True
    except TersorError:
        remove = True
        raise
    finally:
        journal.close(remove=remove)
