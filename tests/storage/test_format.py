"""An independent decoder that follows docs/format.md and shares no code with the package."""

import itertools
import struct
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import small_archive, to_file_bytes, weights

from tersor.files import dense_tensors
from tersor.storage.archive import Archive

SIXTEENTHS = [
    *(1073741824, 1028218693, 984625594, 942880699, 902905651, 864625413, 827968132, 792865000),
    *(759250125, 727060411, 696235434, 666717336, 638450708, 611382493, 585461881, 560640218),
]


def power(byte):
    return SIXTEENTHS[byte & 15] >> (byte >> 4)


def frequencies(zero, decay, curvature, largest):
    """Frequencies of -largest to largest."""
    gap = power(decay)
    ratio = 2**30 - max(gap, 1)
    bend = max(2**30 - ((gap * (curvature - 4)) >> 3), 0)
    weight = [2**30]
    for _ in range(1, largest):
        weight.append(weight[-1] * ratio >> 30)
        ratio = min(ratio * bend >> 30, 2**30 - 1)
    half = min(max(power(zero) >> 7, largest), 2**23 - 1)
    side = [1 + w * (half - largest) // sum(weight) for w in weight]
    return [*side[::-1], 2**24 - 2 * sum(side), *side]


class Coder:
    def __init__(self, payload):
        self.words = list(struct.unpack(f"<{len(payload) // 4}I", payload))
        self.state = 0
        self.refill()
        self.refill()

    def refill(self):
        if self.state < 2**32 and self.words:
            self.state = self.state << 32 | self.words.pop()

    def pop(self, table):
        quantile = self.state & (2**24 - 1)
        left, symbol = 0, 0
        while quantile >= left + table[symbol]:
            left, symbol = left + table[symbol], symbol + 1
        self.state = (self.state >> 24) * table[symbol] + quantile - left
        self.refill()
        return symbol

    def matrix(self, model, rows, columns):
        zero, decay, curvature, largest = model
        if largest == 0:
            return [[0] * columns for _ in range(rows)]
        tables = (frequencies(z, d, curvature, largest) for z, d in zip(zero, decay, strict=True))
        return [[self.pop(table) - largest for _ in range(columns)] for table in tables]


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

    def models(self, rows):
        largest = self.integers(len(rows))
        curvature = self.raw(len(rows))
        zero, decay = ([self.sums(n) for n in rows] for _ in range(2))
        return list(zip(zero, decay, curvature, largest, strict=True))

    def sums(self, count):
        return [s & 255 for s in itertools.accumulate(self.raw(count))]


def factored_weights(data):
    """The weights (rows of floats, exact) of all factored tensors of a file, by name."""
    magic, version, deflated, size, checksum = struct.unpack_from("<8sBIII", data)
    assert (magic, version) == (b"\x93TERSOR\n", 0)
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
    cursor.raw(count)  # types
    kinds = cursor.raw(count)
    shapes = [cursor.integers(axes) for axes in cursor.raw(count)]
    cursor.raw(sum(kind < 2 for kind in kinds))  # reasons
    cursor.integers(sum(kind == 3 for kind in kinds))  # aliases
    factored = [i for i in range(count) if kinds[i] == 2]
    tiles, ranks = cursor.integers(len(factored)), cursor.integers(len(factored))
    scales = struct.unpack(f"<{len(factored)}f", cursor.raw(4 * len(factored)))
    cursor.raw(2 * len(factored))  # signal-to-noise ratios
    codebooks, latents = cursor.models([1] * len(factored)), cursor.models(ranks)
    has_kept = any(kind < 2 for kind in kinds)  # less than 1 MiB in these tests: one group
    sizes = cursor.integers(len(factored) + has_kept)
    weights = {}
    for i, position in enumerate(factored):
        rows, row = shapes[position][0], 1
        for n in shapes[position][1:]:
            row *= n
        per_row = -(-row // tiles[i])
        section, body = body[: sizes[i]], body[sizes[i] :]
        coder = Coder(section)
        (codebook,) = coder.matrix(codebooks[i], 1, tiles[i] * ranks[i])
        latent = coder.matrix(latents[i], ranks[i], rows * per_row)
        assert coder.state == 0 and not coder.words
        weights[names[position]] = [
            single(scales[i] * dot(codebook[j * ranks[i] :], latent, r * per_row + t))
            for r in range(rows)
            for t in range(per_row)
            for j in range(min(tiles[i], row - t * tiles[i]))
        ]
    return weights


def dot(codebook, latent, column):
    """One row of the codebook times one column of the latent, exactly."""
    return sum(c * row[column] for c, row in zip(codebook, latent, strict=False))


def single(value):
    """Rounded to float32: exact, since the product of two float32 numbers fits a double."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def test_the_specification_is_enough_to_decode_a_file():
    archive = small_archive()
    expected = dense_tensors(archive)["layer.weight"].reshape(-1).tolist()
    assert factored_weights(to_file_bytes(archive)) == {"layer.weight": expected}


@settings(max_examples=30)
@given(st.lists(weights(), min_size=1, max_size=3))
def test_the_specification_is_enough_to_decode_any_factors(entries):
    entries = {str(i): e for i, e in enumerate(entries) if e.dtype == torch.float32}
    archive = Archive(entries, 1)
    expected = {n: t.reshape(-1).tolist() for n, t in dense_tensors(archive).items()}
    assert factored_weights(to_file_bytes(archive)) == expected


def test_the_constants_are_powers_of_two():
    """Sixteenths of an octave in units of 2**-30, rounded."""
    exact = [2 ** (30 - j / 16) for j in range(16)]
    assert exact == pytest.approx(SIXTEENTHS, rel=0, abs=0.5)
