# SPDX-License-Identifier: Apache-2.0
"""Files made field by field, as docs/format.md lists them, so that any one field can be wrong.

All checksums fit: only what a hostile or faulty writer could produce is left to be found.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import specified

MAGIC = b"\x93TERSOR\n"


def deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


def factors(codebook: list[list[int]], latent: list[list[int]], outer: int) -> bytes:
    """Coded integers, both matrices in coding order, with no trellis and starts of 128."""
    coder = specified.Encoder()
    specified.code(coder, codebook, len(codebook[0]), 1, 128)
    specified.code(coder, latent, outer, 1, 128)
    return coder.finish()


# Zeros; two bfloat16 and one int64.
SECTIONS = [factors([[0] * 3], [[0] * 4], 4), deflate(bytes(2 * 2 + 8))]

VALID: dict[str, Any] = {
    "source_bytes": 600,
    "count": 4,
    # shared bytes, added bytes; the names are w, wb, wi, x
    "names": [(0, b"w"), (1, b"b"), (1, b"i"), (0, b"x")],
    "dtypes": bytes([1, 1, 4, 1]),  # F32, F32, I64, F32
    "kinds": bytes([2, 1, 0, 3]),  # factors, rounded, exact, alias
    "axes": bytes([2, 1, 0, 2]),
    "lengths": [4, 3, 2, 4, 3],
    "reasons": bytes([0, 2]),
    "aliases": [0],
    "tiles": [3],
    "ranks": [1],
    "scales": struct.pack("<f", 0.5),
    "snrs": struct.pack("<h", 1250),
    "trellises": bytes([0]),
    "codebook_starts": bytes([128]),
    "latent_starts": bytes([128]),
    "slice_rows": [0],
    "tail_bytes": 0,
    "section_sizes": [len(s) for s in SECTIONS],
    "checksums": b"".join(struct.pack("<I", zlib.crc32(s)) for s in SECTIONS),
    "extra": b"",
}


def integer(value: int) -> bytes:
    """LEB128."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def header(**fields: Any) -> bytes:
    """The header with some fields other than in `VALID`."""
    unknown = fields.keys() - VALID.keys()
    assert not unknown, unknown
    parts = []
    for value in (VALID | fields).values():
        if isinstance(value, int):
            parts.append(integer(value))
        elif isinstance(value, list):
            parts += [_item(item) for item in value]
        else:
            parts.append(value)
    return b"".join(parts)


def _item(item: Any) -> bytes:
    if isinstance(item, tuple):
        shared, added = item
        return integer(shared) + integer(len(added)) + added
    return integer(item)


def tail(*items: tuple[int, bytes]) -> bytes:
    """What follows the sections: tags and contents."""
    content = b"".join(integer(tag) + integer(len(text)) + text for tag, text in items)
    return struct.pack("<I", zlib.crc32(content)) + content


def texts(*pairs: tuple[bytes, bytes]) -> bytes:
    """Metadata."""
    return b"".join(integer(len(text)) + text for pair in pairs for text in pair)


def craft(sections: list[bytes] = SECTIONS, tail: bytes = b"", **fields: Any) -> bytes:
    """A file with some fields other than in `VALID`, and matching sizes and checksums."""
    sizes: dict[str, Any] = {
        "tail_bytes": len(tail),
        "section_sizes": [len(s) for s in sections],
        "checksums": b"".join(struct.pack("<I", zlib.crc32(s)) for s in sections),
    }
    return assemble(header(**sizes | fields), [*sections, tail])


def assemble(
    plain: bytes,
    sections: list[bytes] = SECTIONS,
    *,
    version: int = 1,
    size: int | None = None,
    deflated: bytes | None = None,
) -> bytes:
    """A file of a header and sections; the parts of the prefix can be wrong."""
    deflated = deflate(plain) if deflated is None else deflated
    size = len(plain) if size is None else size
    prefix = struct.pack("<8sBIII", MAGIC, version, len(deflated), size, zlib.crc32(deflated))
    return prefix + deflated + b"".join(sections)
