# SPDX-License-Identifier: Apache-2.0
"""Check and parse the bytes before the sections: where each section is and what it holds."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from tersor.errors import FileFormatError
from tersor.storage import header, label, memory, unfactored
from tersor.storage.container import CHECKSUM, MAGIC, PREFIX, VERSION, Stamp, stamp
from tersor.storage.cursor import Reader
from tersor.storage.descriptors import FileBytes
from tersor.storage.header import EXACT, FACTORS, ROUNDED, Field
from tersor.storage.label import Label
from tersor.storage.planes import inflate

Data = bytes | FileBytes
"""All bytes of a file, in memory or read from the disk when indexed."""

UNFACTORED = (EXACT, ROUNDED)

_MAX_BYTES = 1 << 36
"""Most bytes that a file may decode to if the caller gives no limit: 64 GiB."""

_MAX_HEADER = 1 << 26

_ORDINARY_HEADER, _HEADER_SHARE, _TENSOR_COST = 1 << 18, 4, 128
"""Limits of an ordinary header: its size in bytes that any file may have; its largest size over the
size of the file; bytes of memory for each byte of the header, in which a tensor takes at least six.
"""


@dataclass(frozen=True)
class Layout:
    """The content of a header, checked. The sections are not checked.

    Parameters
    ----------
    source_bytes
        Size in bytes of the checkpoint or model that was compressed.
    fields
        One for each tensor.
    stamps
        One for each section: first the slices of the factored tensors, then the groups of
        unfactored tensors.
    header_bytes
        Bytes before the first section.
    nbytes
        Size of the file in bytes.
    label
        Metadata and content hash, which follow the sections; checked.
    """

    source_bytes: int
    fields: list[Field]
    stamps: list[Stamp]
    header_bytes: int
    nbytes: int
    label: Label

    @cached_property
    def factored(self) -> list[Field]:
        """Return the factored tensors, whose slices are the first sections."""
        return [f for f in self.fields if f.kind == FACTORS]

    @cached_property
    def streams(self) -> dict[str, range]:
        """Return the positions of the sections of each factored tensor, by its name."""
        ends = list(accumulate((f.slices for f in self.factored), initial=0))
        pairs = zip(self.factored, ends, ends[1:], strict=False)
        return {f.name: range(start, end) for f, start, end in pairs}

    @property
    def groups(self) -> range:
        """Return the positions of the sections of groups of unfactored tensors."""
        return range(sum(f.slices for f in self.factored), len(self.stamps))

    @cached_property
    def plain(self) -> list[Field]:
        """Return the unfactored tensors, whose groups follow the sections of the factored ones."""
        return [f for f in self.fields if f.kind in UNFACTORED]

    @cached_property
    def starts(self) -> list[int]:
        """Return where each section begins and the last one ends, in bytes of the file."""
        return list(accumulate((s.size for s in self.stamps), initial=self.header_bytes))

    def section(self, data: Data, position: int) -> bytes:
        """Return the section at a position, checked against its stamp.

        Parameters
        ----------
        data
            All bytes of the file.
        position
            Number of the section, from 0.

        Raises
        ------
        FileFormatError
            If its checksum differs.
        """
        content = data[self.starts[position] : self.starts[position + 1]]
        if stamp(content) != self.stamps[position]:
            raise FileFormatError(f"section {position} is damaged (its checksum differs)")
        return content


def read(data: Data, max_bytes: int | None = None) -> Layout:
    """Check and parse the bytes before the sections, and the label after them.

    Parameters
    ----------
    data
        All bytes of the file.
    max_bytes
        Limit of the decoded size, see `tersor.storage.opened.OpenFile`.

    Raises
    ------
    FileFormatError
        If the file is no tersor file, is damaged, has another version or needs too much memory.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise FileFormatError("not a tersor file (it does not start with the magic number)")
    if len(data) < PREFIX.size:
        raise FileFormatError(f"the file ends within its first {PREFIX.size} bytes")
    _, version, deflated_size, header_size, checksum = PREFIX.unpack(data[: PREFIX.size])
    if version != VERSION:
        raise FileFormatError(
            f"format version {version}; this release reads version {VERSION}: "
            + (
                "it was written before the format was final; compress the model anew"
                if version < VERSION
                else "use a later release"
            )
        )
    if header_size > _MAX_HEADER:
        raise FileFormatError(f"header of {header_size} bytes; at most {_MAX_HEADER} is allowed")
    ordinary = max(_ORDINARY_HEADER, _HEADER_SHARE * len(data))
    if header_size > ordinary and _TENSOR_COST * header_size > (max_bytes or 0):
        raise FileFormatError(
            f"header of {header_size} bytes in a file of {len(data)}, that lists more "
            f"than the file can hold; {_allow(_TENSOR_COST * header_size)}"
        )
    deflated = data[PREFIX.size : PREFIX.size + deflated_size]
    if zlib.crc32(deflated) != checksum:
        raise FileFormatError("the header is damaged or cut off (its checksum differs)")
    reader = Reader(inflate(deflated, header_size, "the header"))
    return _parse(reader, PREFIX.size + len(deflated), data, max_bytes)


def _allow(needed: int) -> str:
    """Return the advice to allow so many bytes."""
    return f"if you trust the file, give {needed} as max_bytes (at the command line --max-bytes)"


def _check_memory(fields: list[Field], max_bytes: int | None) -> None:
    """Refuse a file that decodes to more bytes than the caller allows.

    Without a limit of the caller, refuse a tensor that does not fit the memory of the machine.
    Decoding a tensor takes up to twice its bytes for a while.
    """
    total = sum(f.decoded_bytes for f in fields)
    limit = _MAX_BYTES if max_bytes is None else max_bytes
    if total > limit:
        raise FileFormatError(
            f"decoding takes {total} bytes; at most {limit} are allowed: {_allow(total)}"
        )
    largest = max(fields, key=lambda f: f.decoded_bytes, default=None)
    if max_bytes is None and largest and 2 * largest.decoded_bytes > (left := memory.available()):
        raise FileFormatError(
            f"decoding {largest.name!r} takes {2 * largest.decoded_bytes} bytes, and {left} are "
            f"left on this machine: {_allow(total)}"
        )


def check_room(layout: Layout) -> None:
    """Refuse a file whose tensors, all at once, take more memory than is available.

    Raises
    ------
    FileFormatError
        If they do.
    """
    total = sum(f.decoded_bytes for f in layout.fields)
    if total > (left := memory.available()):
        raise FileFormatError(
            f"decoding takes {total} bytes, and {left} are left on this machine: {_allow(total)}"
        )


def _parse(reader: Reader, header_bytes: int, data: Data, max_bytes: int | None) -> Layout:
    source_bytes = reader.integer()
    fields = header.read(reader)
    _check_memory(fields, max_bytes)
    plain = [f for f in fields if f.kind in UNFACTORED]
    factored = sum(f.slices for f in fields)
    groups = sum(1 for _ in unfactored.group(f.stored_bytes for f in plain))
    tail = reader.integer(limit=len(data) - header_bytes)
    stamps = _read_stamps(reader, factored + groups, len(data) - header_bytes - tail)
    unfactored.check_claims(plain, [s.size for s in stamps[factored:]])
    told = _read_tail(data[len(data) - tail :]) if tail else Label()
    return Layout(source_bytes, fields, stamps, header_bytes, len(data), told)


def _read_tail(data: bytes) -> Label:
    if len(data) <= CHECKSUM.size:
        raise FileFormatError(f"{len(data)} bytes follow the sections, which is too little")
    if CHECKSUM.unpack(data[: CHECKSUM.size])[0] != zlib.crc32(data[CHECKSUM.size :]):
        raise FileFormatError("what follows the sections is damaged (its checksum differs)")
    return label.read(data[CHECKSUM.size :])


def _read_stamps(reader: Reader, count: int, left: int) -> list[Stamp]:
    """Return the stamps of all sections, which must fill the rest of the file exactly."""
    sizes = reader.integers(count)
    checksums = [int(reader.unpack("I")[0]) for _ in sizes]
    if reader.left:
        raise FileFormatError(f"the header has {reader.left} bytes too many")
    if sum(sizes) != left:
        raise FileFormatError(
            f"the file has sections of {left} bytes; its header says {sum(sizes)}"
        )
    return [Stamp(*pair) for pair in zip(sizes, checksums, strict=True)]
