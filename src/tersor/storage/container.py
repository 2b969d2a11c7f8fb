"""The file: an archive <-> bytes, checked on the way in, replaced atomically on the way out.

docs/format.md is the specification. In short: a magic number, the sizes and a checksum, the
compressed header, then the sections: one for each factored tensor, one for each group of kept ones.
Nothing in it is code, and every field is checked before it is used.
"""

from __future__ import annotations

import io
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tersor.errors import FileFormatError, InputError
from tersor.storage import header, kept
from tersor.storage.archive import Alias, Archive, Entry, Kept, Plain
from tersor.storage.atomic import replacing
from tersor.storage.cursor import Reader, Writer
from tersor.storage.header import Field
from tersor.storage.planes import inflate
from tersor.storage.records import EncodedFactors

MAGIC = b"\x93TERSOR\n"

VERSION = 0
"""Format version; 0 may change until 1 is frozen."""

MAX_BYTES = 1 << 36
"""Default limit of what a file may decode to: 64 GiB."""

_PREFIX = struct.Struct("<8sBIII")  # magic, version, header: deflated size, size, CRC-32
_MAX_HEADER = 1 << 26


class Stamp(NamedTuple):
    """Size in bytes and CRC-32 of a section."""

    size: int
    checksum: int


def stamp(section: bytes) -> Stamp:
    """The stamp of a section."""
    return Stamp(len(section), zlib.crc32(section))


def kept_sections(archive: Archive) -> Iterator[bytes]:
    """The sections of the kept tensors, one for each group: what takes long if they are large."""
    entries = archive.entries.values()
    plain = [(e.content.values, header.kind(e)) for e in entries if isinstance(e.content, Plain)]
    return kept.encode_all([(values, kind == header.EXACT) for values, kind in plain])


def _factor_sections(archive: Archive) -> Iterator[bytes]:
    contents = (e.content for e in archive.entries.values())
    return (c.payload for c in contents if isinstance(c, EncodedFactors))


def _head(archive: Archive, stamps: Sequence[Stamp]) -> bytes:
    """Prefix and header."""
    out = Writer()
    out.integer(archive.source_bytes)
    header.write(out, archive.entries)
    out.integers(s.size for s in stamps)
    for s in stamps:
        out.pack("I", s.checksum)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    deflated = compressor.compress(out.data) + compressor.flush()
    sizes = len(deflated), len(out.data), zlib.crc32(deflated)
    return _PREFIX.pack(MAGIC, VERSION, *sizes) + deflated


def to_bytes(archive: Archive) -> Iterator[bytes]:
    """The parts of the file, in order: prefix and header, sections."""
    sections = [*_factor_sections(archive), *kept_sections(archive)]
    yield _head(archive, list(map(stamp, sections)))
    yield from sections


def size(archive: Archive, kept: Iterable[Stamp] | None = None) -> int:
    """Bytes of the file, exactly.

    Parameters
    ----------
    kept
        Stamps of the `kept_sections` of the archive, if they are known already.
    """
    stamps = [stamp(section) for section in _factor_sections(archive)]
    stamps += map(stamp, kept_sections(archive)) if kept is None else kept
    return len(_head(archive, stamps)) + sum(s.size for s in stamps)


def write(
    path: str | os.PathLike[str],
    archive: Archive,
    progress: Callable[[str, float], None] = lambda message, done: None,
) -> int:
    """Write the file atomically; returns its size in bytes.

    The header, which comes first, tells of all sections: they wait in a nameless temporary file
    beside the target, not in memory.

    Parameters
    ----------
    progress
        Called with a message and the share of the work that is done, 0 to 1.
    """
    contents = [e.content for e in archive.entries.values()]
    total = sum(c.values.nbytes for c in contents if isinstance(c, Plain))
    with (
        replacing(path) as temporary,
        tempfile.TemporaryFile(dir=temporary.parent) as waiting,
        temporary.open("wb") as file,
    ):
        stamps: list[Stamp] = []
        for section in chain(_factor_sections(archive), kept_sections(archive)):
            progress("writing", min(len(stamps) * kept.GROUP_BYTES / max(total, 1), 1.0))
            stamps.append(stamp(section))
            waiting.write(section)
        file.write(_head(archive, stamps))
        waiting.seek(0)
        shutil.copyfileobj(waiting, file)
        return file.tell()


def header_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes before the first section of a file that `read` has accepted: prefix and header."""
    with Path(path).open("rb") as file:
        return _PREFIX.size + int(_PREFIX.unpack(file.read(_PREFIX.size))[2])


def read(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Archive:
    """Read a file and check all of it but the coded integers, which are checked when decoded.

    Parameters
    ----------
    max_bytes
        Refuse a file whose dense tensors and factors would take more bytes than this.

    Raises
    ------
    InputError
        If there is no such file.
    FileFormatError
        If it is not a valid tersor file, or is damaged; says how.
    """
    try:
        with open_file(path) as file:
            return _read(file, max_bytes)
    except FileFormatError as error:
        raise FileFormatError(f"{Path(path)}: {error}") from None


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file, which may hold anything; an `InputError` if there is none."""
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path} is {'a directory' if path.is_dir() else 'not there'}; "
            "give the path of a .tersor file"
        )
    return path.open("rb")


def from_bytes(data: bytes, *, max_bytes: int = MAX_BYTES) -> Archive:
    """As `read`, from the bytes of a file."""
    return _read(io.BytesIO(data), max_bytes)


class Layout(NamedTuple):
    """A file whose header is checked, and whose sections are not yet."""

    source_bytes: int
    fields: list[Field]
    stamps: list[Stamp]

    @property
    def factored(self) -> list[Field]:
        """The factored tensors, one for each of the first sections."""
        return [f for f in self.fields if f.kind == header.FACTORS]

    @property
    def plain(self) -> list[Field]:
        """The kept tensors, whose groups are the other sections."""
        return [f for f in self.fields if f.kind in (header.EXACT, header.ROUNDED)]


def _read(file: BinaryIO, max_bytes: int) -> Archive:
    found = layout(file, max_bytes)
    sections = (section(file, i, stamp) for i, stamp in enumerate(found.stamps))
    payloads = {f.name: s for f, s in zip(found.factored, sections, strict=False)}
    tensors = kept.decode_all(found.plain, sections)

    def content(field: Field) -> EncodedFactors | Plain | Alias:
        if isinstance(field.detail, EncodedFactors):
            return replace(field.detail, payload=payloads[field.name])
        if isinstance(field.detail, Kept):
            return Plain(tensors[field.name], field.detail)
        return Alias(field.detail)

    entries = {f.name: Entry(f.shape, f.dtype, content(f)) for f in found.fields}
    return Archive(entries, found.source_bytes)


def layout(file: BinaryIO, max_bytes: int) -> Layout:
    """Check and parse what is before the sections, where the file then stands. See `read`."""
    left = file.seek(0, os.SEEK_END)
    file.seek(0)
    prefix = file.read(_PREFIX.size)
    if not prefix.startswith(MAGIC):
        raise FileFormatError("not a tersor file (it does not start with the magic number)")
    if len(prefix) < _PREFIX.size:
        raise FileFormatError(f"the file ends within its first {_PREFIX.size} bytes")
    _, version, deflated_size, header_size, checksum = _PREFIX.unpack(prefix)
    if version != VERSION:
        raise FileFormatError(
            f"format version {version}; this release reads version {VERSION}: use another release"
        )
    if header_size > _MAX_HEADER:
        raise FileFormatError(f"header of {header_size} bytes; at most {_MAX_HEADER} is allowed")
    deflated = file.read(min(deflated_size, left))
    if zlib.crc32(deflated) != checksum:
        raise FileFormatError("the header is damaged or cut off (its checksum differs)")
    reader = Reader(inflate(deflated, header_size, "the header"))
    return _parse(reader, left - file.tell(), max_bytes)


def _parse(reader: Reader, section_bytes: int, max_bytes: int) -> Layout:
    source_bytes = reader.integer()
    fields = header.read(reader)
    total = sum(f.decoded_bytes for f in fields)
    if total > max_bytes:
        raise FileFormatError(
            f"decoding takes {total} bytes; at most {max_bytes} are allowed: if you trust the "
            "file, give a larger max_bytes"
        )
    found = Layout(source_bytes, fields, [])
    factored = len(found.factored)
    groups = sum(1 for _ in kept.group(f.stored_bytes for f in found.plain))
    stamps = _read_stamps(reader, factored + groups, section_bytes)
    kept.check_claims(found.plain, [s.size for s in stamps[factored:]])
    return found._replace(stamps=stamps)


def _read_stamps(reader: Reader, count: int, left: int) -> list[Stamp]:
    """Stamps of all sections, which fill the rest of the file exactly."""
    sizes = reader.integers(count)
    checksums = [int(reader.unpack("I")[0]) for _ in sizes]
    if reader.left:
        raise FileFormatError(f"the header has {reader.left} bytes too many")
    if sum(sizes) != left:
        raise FileFormatError(
            f"the file has {left} bytes after its header; its header says {sum(sizes)}"
        )
    return [Stamp(*pair) for pair in zip(sizes, checksums, strict=True)]


def section(file: BinaryIO, position: int, expected: Stamp) -> bytes:
    """Read the next section, which is the one at this position."""
    content = file.read(expected.size)
    if stamp(content) != expected:
        raise FileFormatError(f"section {position} is damaged (its checksum differs)")
    return content
