# SPDX-License-Identifier: Apache-2.0
"""An independent decoder that follows docs/format.md and shares no code with the package."""

import hashlib
import itertools
import math
import re
import struct
import zlib
from pathlib import Path

import pytest
import specified
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import archives, plain, random_factors, small_archive, to_file_bytes, weights

from tersor.coding import records
from tersor.factorization.weights import factorize_weight
from tersor.io import dense_tensors
from tersor.storage.archive import Archive, Entry, Plain, Reason
from tersor.storage.opened import OpenFile
from tersor.storage.verify import verify


class Cursor:
    def __init__(self, data):
        self.data = iter(data)

    def raw(self, size):
        return bytes(itertools.islice(self.data, size))

    def integer(self):
        value, shift = 0, 0
        while True:
            byte = next(self.data)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def integers(self, count):
        return [self.integer() for _ in range(count)]


def contents(data):
    """Of a file, by name: the weights of factored tensors (rows of floats, exact), and the bytes of
    unfactored ones, as stored."""
    magic, version, deflated, size, checksum = struct.unpack_from("<8sBIII", data)
    assert (magic, version) == (b"\x93TERSOR\n", 1)
    body = data[21 + deflated :]
    assert zlib.crc32(data[21 : 21 + deflated]) == checksum
    header = zlib.decompress(data[21 : 21 + deflated], -15)
    assert len(header) == size
    cursor = Cursor(header)
    cursor.integer()  # bytes of what was compressed
    names, previous = [], b""
    count = cursor.integer()
    for _ in range(count):
        shared, added = cursor.integers(2)
        previous = previous[:shared] + cursor.raw(added)
        names.append(previous.decode())
    types = cursor.raw(count)
    kinds = cursor.raw(count)
    shapes = [cursor.integers(axes) for axes in cursor.raw(count)]
    cursor.raw(sum(kind < 2 for kind in kinds))  # reasons
    cursor.integers(sum(kind == 3 for kind in kinds))  # aliases
    factored = [i for i in range(count) if kinds[i] == 2]
    tiles, ranks = cursor.integers(len(factored)), cursor.integers(len(factored))
    scales = struct.unpack(f"<{len(factored)}f", cursor.raw(4 * len(factored)))
    cursor.raw(2 * len(factored))  # signal-to-noise ratios
    trellises, *starts = (cursor.raw(len(factored)) for _ in range(3))
    plain = [i for i in range(count) if kinds[i] < 2]
    stored = [(3 if kinds[i] == 1 else types[i], math.prod(shapes[i])) for i in plain]
    groups = list(specified.groups(stored))
    slice_rows = cursor.integers(len(factored))
    cursor.integer()  # bytes after the sections
    slices = [specified.slices(shapes[p][0], s) for p, s in zip(factored, slice_rows, strict=True)]
    sizes = iter(cursor.integers(sum(map(len, slices)) + len(groups)))
    weights = {}
    for i, position in enumerate(factored):
        row = 1
        for n in shapes[position][1:]:
            row *= n
        per_row = -(-row // tiles[i])
        states, coded = specified.STATES[trellises[i]], (starts[0][i], starts[1][i])
        elements = weights[names[position]] = []
        codebook = None
        for rows in slices[i]:
            size = next(sizes)
            section, body = body[:size], body[size:]
            d = tiles[i] if codebook is None else 0
            first, latent = integers(section, d, ranks[i], per_row, rows, states, coded)
            codebook = first if codebook is None else codebook
            elements += [
                single(scales[i] * dot([c[j] for c in codebook], latent, t * rows + r))
                for r in range(rows)
                for t in range(per_row)
                for j in range(min(tiles[i], row - t * tiles[i]))
            ]
    for pieces, size in zip(groups, sizes, strict=True):
        section, body = body[:size], body[size:]
        facts = [(stored[n][0], kinds[plain[n]] == 0, nbytes) for n, nbytes in pieces]
        for (n, _), part in zip(pieces, specified.unfactored(section, facts), strict=True):
            weights.setdefault(names[plain[n]], bytearray()).extend(part)
    return weights


def factored_weights(data):
    return {n: w for n, w in contents(data).items() if not isinstance(w, bytearray)}


def unfactored_bytes(archive):
    """What `contents` should give of the unfactored tensors of an archive."""
    unfactored = {
        n: e.content.values for n, e in archive.entries.items() if isinstance(e.content, Plain)
    }
    raw = {n: v.reshape(-1).view(torch.uint8).numpy().tobytes() for n, v in unfactored.items()}
    return {n: b for n, b in raw.items() if b}


def integers(section, d, k, per_row, rows, states, starts):
    """Columns of the codebook, and rows of the latent, both in the order of coding."""
    coder = specified.Decoder(section)
    codebook = specified.code(coder, [[0] * d] * k, d, 1, starts[0]) if d else []
    latent = specified.code(coder, [[0] * (per_row * rows)] * k, rows, states, starts[1])
    assert coder.position >= len(section) and not section.endswith(b"\0")
    return codebook, latent


def dot(codebook, latent, column):
    """One row of the codebook times one column of the latent, exactly."""
    return sum(c * row[column] for c, row in zip(codebook, latent, strict=True))


def single(value):
    """Rounded to float32: exact, since the product of two float32 numbers fits a double."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def test_the_specification_is_enough_to_decode_a_file():
    archive = small_archive()
    expected = dense_tensors(archive)["layer.weight"].reshape(-1).tolist()
    assert contents(to_file_bytes(archive)) == {"layer.weight": expected} | unfactored_bytes(
        archive
    )


@pytest.mark.slow
@given(archives())
def test_the_specification_is_enough_to_decode_any_unfactored_tensors(archive):
    found = {n: w for n, w in contents(to_file_bytes(archive)).items() if isinstance(w, bytearray)}
    assert found == unfactored_bytes(archive)


def test_the_specification_is_enough_to_decode_pieces_of_tensors():
    """A matrix of two and a half groups, and smaller tensors around it."""
    entries = {
        "bias": plain(torch.randn(5), Reason.VECTOR, rounded=True),
        "weight": plain(torch.randn(640, 1024).half(), Reason.LOSSLESS),
        "head": plain(torch.randn(70, 1000), Reason.LOSSLESS),
        "wave": plain(torch.randn(99, dtype=torch.complex64), Reason.NOT_FLOAT),
    }
    archive = Archive(entries, 1)
    assert contents(to_file_bytes(archive)) == unfactored_bytes(archive)


@settings(max_examples=30)
@given(st.lists(weights(), min_size=1, max_size=3))
def test_the_specification_is_enough_to_decode_any_factors(entries):
    entries = {str(i): e for i, e in enumerate(entries) if e.dtype == torch.float32}
    archive = Archive(entries, 1)
    expected = {n: t.reshape(-1).tolist() for n, t in dense_tensors(archive).items()}
    assert factored_weights(to_file_bytes(archive)) == expected


@pytest.mark.parametrize("shape, tile, slice_rows", [((9000, 2), 2, 4096), ((70, 256), 2, 32)])
def test_the_specification_is_enough_to_decode_slices(shape, tile, slice_rows):
    weight = random_factors(shape, tile, 1)
    encoded = records.encode(weight, slice_rows=slice_rows)
    assert len(encoded.streams) == 2
    archive = Archive({"w": Entry(shape, torch.float32, encoded)}, 1)
    expected = {"w": weight.recompose().reshape(-1).tolist()}
    assert factored_weights(to_file_bytes(archive)) == expected


@pytest.mark.parametrize("states", specified.STATES)
@pytest.mark.parametrize("shape, tile", [((24, 18, 3, 3), 9), ((40, 30), 8), ((1, 300), 1)])
def test_the_specification_decodes_what_the_solver_makes(shape, tile, states):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    encoded = records.encode(factorize_weight(weight, tile, 0.7, states=states))
    assert states in (1, encoded.coding.states)
    archive = Archive({"w": Entry(shape, torch.float32, encoded)}, 1)
    expected = {n: t.reshape(-1).tolist() for n, t in dense_tensors(archive).items()}
    assert factored_weights(to_file_bytes(archive)) == expected


def test_tables_do_not_depend_on_the_last_bits_of_powers():
    """None is near a half, where two mathematical libraries might round differently."""
    for m in specified.MAGNITUDES:
        for value in (256 * m, 2**20 / (1 + m), 256 * m / (1 + m)):
            assert abs(value % 1 - 0.5) > 1e-6


def test_tables_never_change():
    """Files are read with them."""
    tables = specified.MEAN, specified.INVERSE, specified.WEIGHT, specified.RATE
    text = repr([list(map(int, table)) for table in tables])
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST


def test_the_page_has_the_constants():
    """Each in one place: the table of constants, or that of first probabilities."""
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    rows = dict(re.findall(r"^\| ([A-Z]{3,}) \| (\d+) \|", page, re.MULTILINE))
    names = {"COUNTS": "COUNT_LIMIT"}
    assert len(rows) == 11
    for name, value in rows.items():
        assert getattr(specified, names.get(name, name)) == int(value)
    for row in specified.PRIORS.values():
        assert page.count(f"| {row} |") == 1


def blocks_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    return re.findall("```text\n(.*?)```", page, re.DOTALL)


def test_the_page_has_a_file():
    """The bytes of the whole, the header field by field, and what is in it."""
    file, listed, _ = blocks_of_the_page()
    data = bytes.fromhex(file)
    assert len(data) == 100
    lines = [line.split("  ")[0] for line in listed.splitlines()]
    assert zlib.decompress(data[21 : 21 + data[9]], -15) == bytes.fromhex(" ".join(lines))
    found = contents(data)
    assert found == {"w": [0, -5, -0.75, 1.5, -0.5, 5.25], "b": struct.pack("<2H", 0x3FC0, 0xC000)}
    with OpenFile(data) as opened:
        assert opened["w"].tolist() == [[0, -5, -0.75], [1.5, -0.5, 5.25]]
        assert opened["b"].tolist() == [1.5, -2] and opened.metadata == {"licence": "MIT"}
        factors = opened.factors("w")
    assert factors.codebook.T.tolist() == [[3, -1], [0, 20]]
    assert factors.latent.tolist() == [[0, -1, 2, 7], [-1, 0, 0, 300]]
    assert verify(data).problems == ()


def test_the_page_has_a_stream():
    *_, block = blocks_of_the_page()
    stream, rows = block.split("\n\n")
    expected = [list(map(int, row.split())) for row in rows.splitlines()]
    decoder, nothing = specified.Decoder(bytes.fromhex(stream)), [[0] * 12] * 2
    assert specified.code(decoder, nothing, 4, 8, 150) == expected


DIGEST = "05d53b520b012e70b77fbd765b256a8cf775d1dbacf1c1a28a0c7f25519c64c9"
