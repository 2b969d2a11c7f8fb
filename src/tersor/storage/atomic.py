"""Write a file so that nobody ever sees half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tersor.errors import InputError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the name of a temporary file that takes the place of ``path`` once it is written.

    If anything goes wrong before that, the temporary file is removed and ``path`` is as it was.

    Raises
    ------
    InputError
        If ``path`` cannot be written at all; see `check_writable`.
    OSError
        If writing fails, with the name of ``path``.
    """
    target = Path(path)
    check_writable(target)
    temporary = _temporary(target)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, str(target)) from None
        raise


def _temporary(target: Path) -> Path:
    """Hidden neighbour of the target, so that renaming it is atomic; its name is never too long."""
    return target.with_name(f".{target.name[:40]}.{os.getpid()}.tmp")


def check_writable(path: Path, source: Path | None = None) -> None:
    """Find out before the work, not after it, that a result could not be written.

    Raises
    ------
    InputError
        If ``path`` is a directory or a device, is in a folder that does not exist or cannot be
        written to, or is the source itself.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory; give the name of the file to write")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file; give the name of the file to write")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; create it first")
    if source and path.exists() and source.exists() and path.samefile(source):
        raise InputError(f"{path} is the input itself; give another name for the output")
    try:  # permissions alone do not tell: file systems can be read-only, names too long
        _temporary(path).touch()
        _temporary(path).unlink()
    except OSError as error:
        raise InputError(
            f"the folder {path.parent} cannot be written to ({error.strerror}); choose another"
        ) from None
