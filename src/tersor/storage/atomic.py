# SPDX-License-Identifier: Apache-2.0
"""Write files atomically: other processes see the earlier file or the whole new one."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from glob import escape
from pathlib import Path

from tersor.errors import InputError
from tersor.storage.descriptors import is_at, lock, lock_if_any

_STRAY_SECONDS = 86_400
"""Age in seconds at which a temporary file of another machine, whose lock may be invisible here,
counts as left over."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the name of a temporary file that replaces ``path`` when the context ends.

    If an error occurs before that, the temporary file is removed and ``path`` stays as it was. A
    killed process cannot remove its temporary file; the next write of the same ``path`` removes it.

    Parameters
    ----------
    path
        File to write.

    Yields
    ------
    Path
        A temporary file in the same folder.

    Raises
    ------
    InputError
        If ``path`` cannot be written at all; see `check_writable`.
    OSError
        If writing fails; the error names ``path``.
    """
    target = Path(path)
    _check_target(target)
    _remove_strays(target)
    with _temporary(target) as (temporary, descriptor):
        try:
            yield temporary
            os.fsync(descriptor)
            temporary.replace(target)
        except OSError as error:
            if error.errno:
                raise OSError(error.errno, error.strerror, str(target)) from None
            raise


@contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, int]]:
    """Yield a new, locked, hidden file beside the target, and remove it at the end.

    It is in the same folder because renaming is atomic there.
    """
    try:
        path, descriptor = _create(target)
    except OSError as error:
        raise InputError(
            f"the folder {target.parent} cannot be written to ({error.strerror}); choose another"
        ) from None
    try:
        yield path, descriptor
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _create(target: Path) -> tuple[Path, int]:
    """Create a file with a new name, and lock it before another process finds it unlocked."""
    while True:  # without locks, only the age tells which files are left over
        path = target.with_name(f"{_stem(target)}{_machine()}-{secrets.token_hex(8)}.tmp")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if lock_if_any(descriptor) and is_at(descriptor, path):
            return path, descriptor
        path.unlink(missing_ok=True)  # another process removed it before it was locked
        os.close(descriptor)


def _stem(target: Path) -> str:
    return f".{target.name[:40]}."


@cache
def _machine() -> str:
    """Return a name of the running system, which knows all locks on its own files."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "unknown"


def _remove_strays(target: Path) -> None:
    """Remove temporary files of processes that were killed while they wrote the target."""
    for path in target.parent.glob(f"{escape(_stem(target))}*-{'[0-9a-f]' * 16}.tmp"):
        with suppress(OSError):  # removed meanwhile, or owned by another user
            if _is_stray(path, path.name.removeprefix(_stem(target)).partition("-")[0]):
                path.unlink()


def _is_stray(path: Path, machine: str) -> bool:
    """Return whether no process writes this file.

    A writing process holds the lock of its file. Where locks may be unknown, the age of the file
    decides.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        known = machine == _machine() != "unknown"
        old = time.time() - os.fstat(descriptor).st_mtime > _STRAY_SECONDS
        with suppress(OSError):
            return lock(descriptor) and (known or old)
        return old
    finally:
        os.close(descriptor)


def check_writable(path: Path, source: Path | None = None) -> None:
    """Check before the work starts that its result can be written.

    Parameters
    ----------
    path
        File to write later.
    source
        The input, which must not be overwritten.

    Raises
    ------
    InputError
        If ``path`` is a directory or a device, is in a folder that does not exist or cannot be
        written to, or is the source itself.
    """
    _check_target(path)
    if source and path.exists() and source.exists() and path.samefile(source):
        raise InputError(f"{path} is the input itself; give another name for the output")
    with _temporary(path):
        pass  # permissions are not enough: the file system can be read-only, the name too long


def _check_target(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a directory; give the name of the file to write")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file; give the name of the file to write")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; create it first")
