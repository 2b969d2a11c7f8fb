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
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: Path, source: Path) -> None:
    """Find out before the work, not after it, that a result could not be written.

    Raises
    ------
    InputError
        If ``path`` is a directory, is in a folder that does not exist, or is the source itself.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory; give the name of the file to write")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"the folder {path.parent} cannot be written to; choose another")
    if path.exists() and source.exists() and path.samefile(source):
        raise InputError(f"{path} is the input itself; give another name for the output")
