"""The file: an archive <-> bytes, checked on the way in, replaced atomically on the way out.

docs/format.md is the specification. In short: a magic number, the sizes and a checksum, the
compressed header, then the sections: one for each factored tensor, one for each group of kept ones.
Nothing in it is code, and every field is checked before it is used.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from tersor.errors import FileFormatError, InputError
from tersor.storage import header, kept
from tersor.storage.archive import Alias, Archive, Entry, Kept, Plain
from tersor.storage.atomic import replacing
from tersor.storage.cursor import Reader, Writer
from tersor.storage.header import Field
from tersor.storage.records import EncodedFactors

MAGIC = b"\x93TERSOR\n"

VERSION = 0
"""Format version; 0 may change until 1 is frozen."""

MAX_BYTES = 1 << 36
"""Default limit of what a file may decode to: 64 GiB."""

_PREFIX = struct.Struct("<8sBIII")  # magic, version, header: deflated size, size, CRC-32
_MAX_HEADER = 1 << 26


def kept_sections(archive: Archive) -> list[bytes]:
    """The sections of the kept tensors, one for each group: what takes long if they are large."""
    contents = (e.content for e in archive.entries.values())
    plain = [c.values for c in contents if isinstance(c, Plain)]
    return [kept.encode([plain[i] for i in g]) for g in kept.group(t.nbytes for t in plain)]


def to_bytes(archive: Archive, kept: list[bytes] | None = None) -> Iterator[bytes]:
    """The parts of the file, in order: prefix, header, sections.

    Parameters
    ----------
    kept
        `kept_sections` of the archive, if they are known already.
    """
    contents = [e.content for e in archive.entries.values()]
    sections = [c.payload for c in contents if isinstance(c, EncodedFactors)]
    sections += kept_sections(archive) if kept is None else kept
    out = Writer()
    out.integer(archive.source_bytes)
    header.write(out, archive.entries)
    out.integers(map(len, sections))
    for section in sections:
        out.pack("I", zlib.crc32(section))
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    deflated = compressor.compress(out.data) + compressor.flush()
    yield _PREFIX.pack(MAGIC, VERSION, len(deflated), len(out.data), zlib.crc32(deflated))
    yield deflated
    yield from sections


def size(archive: Archive, kept: list[bytes] | None = None) -> int:
    """Bytes of the file, exactly. For ``kept`` see `to_bytes`."""
    return sum(map(len, to_bytes(archive, kept)))


def header_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes before the first section of a file that `read` has accepted: prefix and header."""
    with Path(path).open("rb") as file:
        return _PREFIX.size + int(_PREFIX.unpack(file.read(_PREFIX.size))[2])


def write(path: str | os.PathLike[str], archive: Archive) -> int:
    """Write the file atomically; returns its size in bytes."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        return sum(file.write(part) for part in to_bytes(archive))


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
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path} is {'a directory' if path.is_dir() else 'not there'}; "
            "give the path of a .tersor file"
        )
    try:
        return from_bytes(path.read_bytes(), max_bytes=max_bytes)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None


def from_bytes(data: bytes, *, max_bytes: int = MAX_BYTES) -> Archive:
    """As `read`, from the bytes of a file."""
    if not data.startswith(MAGIC):
        raise FileFormatError("not a tersor file (it does not start with the magic number)")
    if len(data) < _PREFIX.size:
        raise FileFormatError(f"the file ends within its first {_PREFIX.size} bytes")
    _, version, deflated_size, header_size, checksum = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise FileFormatError(
            f"format version {version}; this release reads version {VERSION}: use another release"
        )
    if header_size > _MAX_HEADER:
        raise FileFormatError(f"header of {header_size} bytes; at most {_MAX_HEADER} is allowed")
    end = _PREFIX.size + deflated_size
    deflated = data[_PREFIX.size : end]
    if zlib.crc32(deflated) != checksum:
        raise FileFormatError("the header is damaged or cut off (its checksum differs)")
    inflated = kept.inflate(deflated, header_size, "the header")
    return _parse(Reader(inflated), data, end, max_bytes)


def _parse(reader: Reader, data: bytes, start: int, max_bytes: int) -> Archive:
    source_bytes = reader.integer()
    fields = header.read(reader)
    total = sum(f.decoded_bytes for f in fields)
    if total > max_bytes:
        raise FileFormatError(f"decoding takes {total} bytes; at most {max_bytes} are allowed")
    plain = [f for f in fields if f.kind in (header.EXACT, header.ROUNDED)]
    groups = [[plain[i] for i in g] for g in kept.group(f.stored_bytes for f in plain)]
    factored = [f.name for f in fields if f.kind == header.FACTORS]
    payloads = _read_sections(reader, data, start, len(factored) + len(groups))
    values = dict(zip(factored, payloads, strict=False))
    tensors: dict[str, Tensor] = {}
    for group, payload in zip(groups, payloads[len(factored) :], strict=True):
        specs = [(f.stored_dtype, f.shape) for f in group]
        decoded = kept.decode(payload, specs, f"the group of {group[0].name!r}")
        tensors.update(zip((f.name for f in group), decoded, strict=True))

    def content(field: Field) -> EncodedFactors | Plain | Alias:
        if isinstance(field.detail, EncodedFactors):
            return replace(field.detail, payload=values[field.name])
        if isinstance(field.detail, Kept):
            return Plain(tensors[field.name], field.detail)
        return Alias(field.detail)

    entries = {f.name: Entry(f.shape, f.dtype, content(f)) for f in fields}
    return Archive(entries, source_bytes)


def _read_sections(reader: Reader, data: bytes, start: int, count: int) -> list[bytes]:
    sizes = reader.integers(count)
    checksums = [reader.unpack("I")[0] for _ in sizes]
    if reader.left:
        raise FileFormatError(f"the header has {reader.left} bytes too many")
    if start + sum(sizes) != len(data):
        raise FileFormatError(
            f"the file has {len(data)} bytes; its header says {start + sum(sizes)}"
        )
    sections = []
    for position, (size, checksum) in enumerate(zip(sizes, checksums, strict=True)):
        section = data[start : start + size]
        if zlib.crc32(section) != checksum:
            raise FileFormatError(f"section {position} is damaged (its checksum differs)")
        sections.append(section)
        start += size
    return sections
