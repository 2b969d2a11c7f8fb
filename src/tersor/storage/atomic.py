"""Write a file so that nobody ever sees half of it."""

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
"""Temporary files of other machines, whose locks may be unknown here, are left alone so long."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the name of a temporary file that takes the place of ``path`` once it is written.

    If anything goes wrong before that, the temporary file is removed and ``path`` is as it was. One
    that a killed process could not remove goes when the same file is next written.

    Raises
    ------
    InputError
        If ``path`` cannot be written at all; see `check_writable`.
    OSError
        If writing fails, with the name of ``path``.
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
    """A new, locked, hidden neighbour of the target, so that renaming it is atomic; then none."""
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
    """Make a file of a name that nobody else has, and take its lock before others see it free."""
    while True:  # where there are no locks, age tells what is a stray
        path = target.with_name(f"{_stem(target)}{_machine()}-{secrets.token_hex(8)}.tmp")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if lock_if_any(descriptor) and is_at(descriptor, path):
            return path, descriptor
        path.unlink(missing_ok=True)  # another process took it for a stray before it was locked
        os.close(descriptor)


def _stem(target: Path) -> str:
    return f".{target.name[:40]}."


@cache
def _machine() -> str:
    """What tells the running system, which knows all locks on its files, from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "unknown"


def _remove_strays(target: Path) -> None:
    """Remove what processes have left that were killed while they wrote this file."""
    for path in target.parent.glob(f"{escape(_stem(target))}*-{'[0-9a-f]' * 16}.tmp"):
        with suppress(OSError):  # gone meanwhile, or of another user
            if _is_stray(path, path.name.removeprefix(_stem(target)).partition("-")[0]):
                path.unlink()


def _is_stray(path: Path, machine: str) -> bool:
    """Whether no process writes this file: it would hold the lock, or have made it lately."""
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
    """Find out before the work, not after it, that a result could not be written.

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
        pass  # permissions alone do not tell: file systems can be read-only, names too long


def _check_target(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a directory; give the name of the file to write")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file; give the name of the file to write")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; create it first")
