# SPDX-License-Identifier: Apache-2.0
"""Check a zip archive before PyTorch reads it, because PyTorch trusts it."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from tersor.errors import InputError

_ALIGNED = 16
"""Alignment in bytes that suffices to use elements of every type in place in the file."""

_LOCAL_HEADER = struct.Struct("<26xHH")
"""Lengths of the name and of the extra field of an entry, whose content comes after both."""

_CHUNK = 1 << 20

_IS_FOLDER = 0x10
"""Bit of an entry's attributes that makes PyTorch read nothing, and older versions not say so."""

_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""Errors that the library raises for archives that are damaged, encrypted or of rare kinds."""


def check(path: Path) -> tuple[dict[str, int], bool]:
    """Read a whole archive, and return the sizes of its entries and whether it may be mapped.

    PyTorch maps the bytes of an archive as they are. That is correct only if entries are not
    compressed, and safe only if they are aligned. PyTorch does not compare checksums.

    Parameters
    ----------
    path
        The archive.

    Returns
    -------
    tuple
        Bytes of each entry by its name, and True if PyTorch may map the file.

    Raises
    ------
    InputError
        If the archive is damaged, or two entries have the same name.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names):
                raise InputError("it is damaged: two entries of the archive have one name")
            if any(entry.external_attr & _IS_FOLDER and entry.file_size for entry in entries):
                raise InputError("it is damaged: a folder of the archive has content")
            # torch.save can be set to compute no checksums, and then writes 0 for all of them.
            if any(entry.CRC for entry in entries):
                _read_all(archive, entries)
            sizes = {entry.filename: entry.file_size for entry in entries}
            return sizes, all(_lies_raw(file, entry) for entry in entries)
    except _FAULTS as error:
        raise InputError(f"it is damaged: {error}; get the file again") from None


def _read_all(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> None:
    """Read every entry, so that the library compares it with its checksum."""
    for entry in entries:
        with archive.open(entry) as content:
            while content.read(_CHUNK):
                pass


def _lies_raw(file: BinaryIO, entry: zipfile.ZipInfo) -> bool:
    """Return whether the bytes of an entry are its content and can be used in place."""
    if entry.compress_type != zipfile.ZIP_STORED:
        return False
    file.seek(entry.header_offset)
    lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start = entry.header_offset + _LOCAL_HEADER.size + sum(lengths)
    return start % _ALIGNED == 0 or "/data/" not in f"/{entry.filename}"
