# SPDX-License-Identifier: Apache-2.0
"""Write an archive as the bytes of a file, and replace an earlier file atomically.

docs/format.md is the specification. In short: a magic number, the sizes and a checksum, then the
compressed header, then the sections. There is one section for each slice of a factored tensor and
one for each group of unfactored tensors. If it was asked for, the file ends with a label: metadata
and a hash of the content. `tersor.storage.opened` reads such files.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from tersor.coding.records import EncodedFactors
from tersor.storage import header, label, unfactored
from tersor.storage.archive import Archive, Plain
from tersor.storage.atomic import replacing
from tersor.storage.cursor import Writer
from tersor.storage.label import Label

MAGIC = b"\x93TERSOR\n"

VERSION = 1
"""Version of the format. It is frozen; docs/format.md says what a change of the format requires."""

PREFIX = struct.Struct("<8sBIII")
"""Magic number and version, then three numbers of the header: deflated size, size, CRC-32."""


CHECKSUM = struct.Struct("<I")
"""CRC-32 of the label. It stands after the sections and in front of the label."""


class Stamp(NamedTuple):
    """Size in bytes and CRC-32 of a section."""

    size: int
    checksum: int


def stamp(section: bytes) -> Stamp:
    """Return the size and the CRC-32 of a section."""
    return Stamp(len(section), zlib.crc32(section))


def unfactored_sections(archive: Archive) -> Iterator[bytes]:
    """Yield the sections of the unfactored tensors, one for each group.

    Encoding large tensors takes long, so callers may keep the result.
    """
    entries = archive.entries.values()
    plain = [(e.content.values, header.kind(e)) for e in entries if isinstance(e.content, Plain)]
    return unfactored.encode_all([(values, kind == header.EXACT) for values, kind in plain])


def _factor_sections(archive: Archive) -> Iterator[bytes]:
    contents = (e.content for e in archive.entries.values())
    return (s for c in contents if isinstance(c, EncodedFactors) for s in c.streams)


def _head(archive: Archive, stamps: Sequence[Stamp]) -> bytes:
    """Return the prefix and the header."""
    out = Writer()
    out.integer(archive.source_bytes)
    header.write(out, archive.entries)
    out.integer(_tail_bytes(archive))
    out.integers(s.size for s in stamps)
    for s in stamps:
        out.pack("I", s.checksum)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    deflated = compressor.compress(out.data) + compressor.flush()
    sizes = len(deflated), len(out.data), zlib.crc32(deflated)
    return PREFIX.pack(MAGIC, VERSION, *sizes) + deflated


def _tail_bytes(archive: Archive) -> int:
    content = label.size(archive.metadata, archive.hashed)
    return content and CHECKSUM.size + content


def _tail(archive: Archive) -> bytes:
    """Return the label of the file behind its checksum, or no bytes if the label is empty."""
    content_hash = label.content_hash(archive) if archive.hashed else b""
    content = label.write(Label(archive.metadata, content_hash))
    return content and CHECKSUM.pack(zlib.crc32(content)) + content


def to_bytes(archive: Archive) -> Iterator[bytes]:
    """Yield the parts of the file in order: prefix and header, each section, the label."""
    sections = [*_factor_sections(archive), *unfactored_sections(archive)]
    yield _head(archive, list(map(stamp, sections)))
    yield from sections
    yield _tail(archive)


def size(archive: Archive, unfactored: Iterable[Stamp] | None = None) -> int:
    """Return the exact size of the file in bytes.

    Parameters
    ----------
    archive
        What is to be written.
    unfactored
        Stamps of the `unfactored_sections` of the archive, if they are known already. By default
        the sections are encoded to measure them.
    """
    stamps = [stamp(section) for section in _factor_sections(archive)]
    stamps += map(stamp, unfactored_sections(archive)) if unfactored is None else unfactored
    return len(_head(archive, stamps)) + sum(s.size for s in stamps) + _tail_bytes(archive)


def write(
    path: str | os.PathLike[str],
    archive: Archive,
    progress: Callable[[str, float], None] = lambda message, done: None,
) -> int:
    """Write the file atomically and return its size in bytes.

    The header comes first in the file and lists the sizes of all sections. The sections therefore
    wait in a nameless temporary file beside the target until the header is known; they do not wait
    in memory.

    Parameters
    ----------
    path
        File to write; an earlier file of that name is replaced.
    archive
        What is written.
    progress
        Called with a message and the share of the work that is done, from 0 to 1.

    Returns
    -------
    int
        Size of the file in bytes.

    Raises
    ------
    InputError
        If ``path`` cannot be written, see `tersor.storage.atomic.replacing`.
    OSError
        If writing fails, for example on a full disk.
    """
    contents = [e.content for e in archive.entries.values()]
    total = sum(c.values.nbytes for c in contents if isinstance(c, Plain))
    with (
        replacing(path) as temporary,
        tempfile.TemporaryFile(dir=temporary.parent) as waiting,
        temporary.open("wb") as file,
    ):
        stamps: list[Stamp] = []
        for section in chain(_factor_sections(archive), unfactored_sections(archive)):
            progress("writing", min(len(stamps) * unfactored.GROUP_BYTES / max(total, 1), 1.0))
            stamps.append(stamp(section))
            waiting.write(section)
        file.write(_head(archive, stamps))
        waiting.seek(0)
        shutil.copyfileobj(waiting, file)
        file.write(_tail(archive))
        return file.tell()
