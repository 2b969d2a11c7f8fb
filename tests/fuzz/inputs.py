# SPDX-License-Identifier: Apache-2.0
"""Inputs of the fuzzers: what they mean, and those to begin with.

An input that begins with 0x93 is a file as it is. Any other is made into a file that is whole on
the outside, so that changes reach what is inside:

- a byte S: the lower five bits are the number of sections;
- two bytes, little-endian: the size of the header, at most 60000 and what is there;
- the header, not compressed, and without its last two fields, which are made to fit;
- each section: its size, two bytes, at most what is there, and its content;
- all that is left: what follows the sections.

Checksums do not count: fuzzers do not guess them. fuzz_decoder.c does the same in C. Fuzzers that
know the format (mutate.cpp) begin with the files alone, and mend checksums.

    python tests/fuzz/inputs.py    # writes the inputs to begin with into the corpus
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import torch
from samples import from_file_bytes, small_archive, to_file_bytes

from tersor.coding import records
from tersor.factors import Factors
from tersor.storage import container, header
from tersor.storage.archive import Archive, Entry
from tersor.storage.cursor import Writer
from tersor.tiling import BLOCK

CORPUS = Path(__file__).parent / "corpus"

LIMIT = 1 << 16
"""Bytes that an input may decode to."""

_LARGEST_HEADER = 60000


def to_file(data: bytes) -> bytes:
    """The bytes of the file that an input stands for."""
    if data[:1] == b"\x93" or not data:
        return data
    plain, rest = _take(data[1:], _LARGEST_HEADER)
    sections = []
    for _ in range(data[0] & 31):
        section, rest = _take(rest, 0xFFFF)
        sections.append(section)
    out = Writer(bytearray(plain))
    out.integers(map(len, sections))
    out.raw(bytes(4 * len(sections)))
    deflated = struct.pack("<BHH", 1, len(out.data), len(out.data) ^ 0xFFFF) + out.data
    prefix = struct.pack(
        "<8sBIII", container.MAGIC, container.VERSION, len(deflated), len(out.data), 0
    )
    return prefix + deflated + b"".join(sections) + rest


def _take(data: bytes, most: int) -> tuple[bytes, bytes]:
    """What a size of two bytes in front announces, and the rest."""
    size = min(int.from_bytes(data[:2], "little"), most)
    return data[2 : 2 + size], data[2 + size :]


def from_file(data: bytes) -> bytes:
    """An input that stands for a file with the header and the sections of this one."""
    archive = from_file_bytes(data)
    out = Writer()
    out.integer(archive.source_bytes)
    header.write(out, archive.entries)
    _, *sections, tail = container.to_bytes(archive)
    out.integer(len(tail))
    parts = [bytes(out.data), *sections]
    return bytes([len(sections)]) + b"".join(struct.pack("<H", len(p)) + p for p in parts) + tail


def sliced() -> Archive:
    """Two slices, as short as can be."""
    codebook, latent = torch.full((1, 1), 3).short(), torch.zeros(1, 2 * BLOCK).short()
    latent[0, 7], latent[0, -1] = -2, 5
    factors = Factors(codebook, latent, 0.5, (2 * BLOCK, 1), torch.bfloat16)
    return Archive({"w": Entry(factors.shape, factors.dtype, records.encode(factors, 1, BLOCK))}, 1)


def main() -> None:
    golden = CORPUS.parents[1] / "golden"
    CORPUS.mkdir(exist_ok=True)
    files = {
        name: (golden / f"{name}.tersor").read_bytes() for name in ("compressed", "every_kind")
    }
    files["sliced"] = to_file_bytes(sliced())
    said = {"licence": "MIT", "é": ""}
    files["said"] = to_file_bytes(replace(small_archive(), metadata=said, hashed=True))
    for name, data in files.items():
        (CORPUS / f"{name}.file").write_bytes(data)
        (CORPUS / f"{name}.parts").write_bytes(from_file(data))


if __name__ == "__main__":
    main()
