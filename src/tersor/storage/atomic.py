"""Write a file so that nobody ever sees half of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tersor.errors import InputError


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
    check_writable(target)
    _remove_strays(target)
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
    return target.with_name(f"{_stem(target)}{os.getpid()}.tmp")


def _stem(target: Path) -> str:
    return f".{target.name[:40]}."


def _remove_strays(target: Path) -> None:
    """Remove what processes have left that were killed while they wrote this file."""
    for path in target.parent.iterdir():
        process = path.name.removeprefix(_stem(target)).removesuffix(".tmp")
        if path.name == f"{_stem(target)}{process}.tmp" and not _may_run(process):
            with suppress(OSError):
                path.unlink()


def _may_run(process: str) -> bool:
    if not re.fullmatch("[0-9]{1,9}", process):
        return True  # no name of ours
    if os.name != "posix":
        return False  # a file in use cannot be removed there
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


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
