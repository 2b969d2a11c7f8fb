"""Look at a zip archive before PyTorch does, which trusts it."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from tersor.errors import InputError

_ALIGNED = 16
"""Elements of every type can be used where they lie in a file at multiples of so many bytes."""

_LOCAL_HEADER = struct.Struct("<26xHH")
"""Lengths of the name and the extra field, which the content of an entry follows."""

_CHUNK = 1 << 20

_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What the library raises of archives that are damaged, encrypted or of rare kinds."""


def check(path: Path) -> tuple[list[str], bool]:
    """Read all of an archive; return the names of its entries, and whether it may be mapped.

    PyTorch maps the bytes of an archive as they are: that is right only of entries that are not
    compressed, and safe only of aligned ones. It does not compare checksums.

    Raises
    ------
    InputError
        If the archive is damaged, or has two entries of one name.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names):
                raise InputError("it is damaged: two entries of the archive have one name")
            # torch.save can be told not to compute any checksum, and then writes 0 for all.
            if any(entry.CRC for entry in entries):
                _read_all(archive, entries)
            return names, all(_lies_raw(file, entry) for entry in entries)
    except _FAULTS as error:
        raise InputError(f"it is damaged: {error}; get the file again") from None


def _read_all(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> None:
    """Read every entry, which the library compares to its checksum."""
    for entry in entries:
        with archive.open(entry) as content:
            while content.read(_CHUNK):
                pass


def _lies_raw(file: BinaryIO, entry: zipfile.ZipInfo) -> bool:
    """Whether the bytes of an entry in the file are its content, and can be used in place."""
    if entry.compress_type != zipfile.ZIP_STORED:
        return False
    file.seek(entry.header_offset)
    lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start = entry.header_offset + _LOCAL_HEADER.size + sum(lengths)
    return start % _ALIGNED == 0 or "/data/" not in f"/{entry.filename}"
