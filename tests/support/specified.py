# SPDX-License-Identifier: Apache-2.0
"""The coder of docs/format.md in plain Python, written from that page alone. Slow, and readable."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator
from typing import Protocol

STATES = (1, 4, 8, 16, 32, 64)
MASKS = {4: (0, 1), 8: (1, 2), 16: (1, 2), 32: (2, 4), 64: (1, 10)}
RESTART = 4096
LARGEST = 4095
LEVELS, BINS, ESCAPE = 40, 16, 20
CONFIDENCE, COUNT_LIMIT = 8, 255
LEAST = 8
STRENGTH, MOST, FARTHEST = 8192, 65280, 65536
LEARNING, STEEPEST = 370, 12288
PRIORS = {
    "even": "1 1 2 3 4 5 9 13 15 19 24 32 41 59 90 110 141 174 192 202 207 210 212 215",
    "odd": "1 1 2 3 4 5 9 13 22 38 64 97 131 159 182 197 209 221 228 233 234 236 236 236",
    "second": "3 3 3 3 3 3 3 3 3 4 5 6 7 12 28 40 61 95 123 148 169 184 200 205",
    "later": "15 15 15 15 15 15 15 15 15 15 15 15 20 20 23 36 54 72 92 123 159 184 200 205",
    "plain": "1 2 2 3 5 7 9 13 18 24 33 44 59 76 95 117 139 160 180 197 212 223 227 229",
    "plain later": "1 2 2 3 4 6 8 11 14 18 24 30 40 53 69 88 109 131 153 173 192 207 213 216",
}

MAGNITUDES = [2.0 ** ((t - 128) / 16) for t in range(320)]
MEAN = [round(256 * m) for m in MAGNITUDES]
INVERSE = [round(2**20 / (1 + m)) for m in MAGNITUDES]
WEIGHT = [round(256 * m / (1 + m)) for m in MAGNITUDES]
RATE = [int(65536 / (count + 1.5)) for count in range(COUNT_LIMIT + 1)]


GROUP_BYTES = 2**20
SIZES = (8, 4, 2, 2, 8, 4, 2, 1, 1, 1, 1, 1, 2, 4, 8, 8)
"""Bytes of an element of each data type."""
TURNED = (0, 1, 2, 3, 15)
NAMES = (
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64", "complex64"),
)
TYPES = {name: code for code, name in enumerate(NAMES)}
"""Data types by PyTorch's names."""


def leb128(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def content_hash(tensors: dict[str, tuple[int, list[int], bytes]]) -> bytes:
    """Of tensors: data type, lengths of the axes, elements."""
    whole = hashlib.sha256()
    for name in sorted(tensors, key=str.encode):
        code, shape, data = tensors[name]
        whole.update(leb128(len(name.encode())) + name.encode() + bytes([code, len(shape)]))
        whole.update(b"".join(map(leb128, shape)) + hashlib.sha256(data).digest())
    return whole.digest()


def slices(rows: int, slice_rows: int) -> list[int]:
    """Weight rows of each slice."""
    if slice_rows == 0:
        return [rows]
    count = rows // slice_rows
    return [slice_rows] * (count - 1) + [rows - (count - 1) * slice_rows]


def words(code: int) -> tuple[int, int]:
    """Number of words of an element, and bytes of a word."""
    return (2, 4) if code == 15 else (1, SIZES[code])


def groups(tensors: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Groups of pieces (tensor, bytes) of tensors (data type as stored, elements)."""
    pieces: list[tuple[int, int]] = []
    for number, (code, count) in enumerate(tensors):
        left = count * SIZES[code]
        while left:
            size = min(left, GROUP_BYTES)
            if sum(s for _, s in pieces) + size > GROUP_BYTES:
                yield pieces
                pieces = []
            pieces.append((number, size))
            left -= size
    if pieces:
        yield pieces


def unfactored(section: bytes, pieces: list[tuple[int, bool, int]]) -> list[bytes]:
    """Elements as they lie in memory, of pieces (data type as stored, exact or not, bytes)."""
    inflater = zlib.decompressobj(-15)
    data = inflater.decompress(section)
    assert inflater.eof and not inflater.unused_data
    assert len(data) == sum(size for _, _, size in pieces)
    values = [[0] * (size // words(code)[1]) for code, _, size in pieces]
    position = 0
    for plane in range(8):
        for (code, _, _), numbers in zip(pieces, values, strict=True):
            if plane < words(code)[1]:
                for i in range(len(numbers)):
                    numbers[i] = numbers[i] << 8 | data[position]
                    position += 1
    back = []
    for (code, exact, _), numbers in zip(pieces, values, strict=True):
        size = words(code)[1]
        if exact and code in TURNED:
            numbers = [n >> 1 | (n & 1) << (8 * size - 1) for n in numbers]
        back.append(b"".join(n.to_bytes(size, "little") for n in numbers))
    return back


class Trellis:
    """States, the grid of each, and the index of a magnitude on its grid."""

    def __init__(self, states: int) -> None:
        self.states = states
        self.even_mask, self.odd_mask = MASKS.get(states, (0, 0))

    def grid(self, state: int) -> int:
        return 0 if self.states == 1 else state // (self.states // 2)

    def next(self, state: int, index: int) -> int:
        if self.states == 1:
            return 0
        grid, rest = divmod(state, self.states // 2)
        if grid:
            rest ^= self.even_mask
        if index % 2:
            rest ^= self.odd_mask
        return 2 * rest + grid

    def value(self, grid: int, index: int) -> int:
        if self.states == 1:
            return index
        return 2 * index - 1 if grid and index else 2 * index

    def paths(self, length: int) -> Iterator[list[tuple[int, int]]]:
        """All sequences of (grid, parity of the index) of a row."""
        for number in range(2**length if self.states > 1 else 1):
            state, path = 0, []
            for column in range(length):
                parity = number >> column & 1
                path.append((self.grid(state), parity))
                state = self.next(state, parity)
            yield path


class Coder(Protocol):
    def bit(self, probability: int, wanted: int) -> int: ...
    def flat(self, wanted: int) -> int: ...


class Decoder:
    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0
        self.range, self.code = 2**32 - 1, 0
        for _ in range(4):
            self._shift()

    def _shift(self) -> None:
        byte = self.data[self.position] if self.position < len(self.data) else 0
        self.position += 1
        self.code = (self.code << 8 | byte) % 2**32

    def _choose(self, bound: int) -> int:
        bit = int(self.code < bound)
        if bit:
            self.range = bound
        else:
            self.range -= bound
            self.code -= bound
        while self.range < 2**24:
            self.range <<= 8
            self._shift()
        return bit

    def bit(self, probability: int, wanted: int) -> int:
        return self._choose((self.range >> 15) * probability)

    def flat(self, wanted: int) -> int:
        self.range -= self.range & 1
        return self._choose(self.range >> 1)


class Encoder:
    """An interval of exact integers: no carries to propagate, so it checks those of others."""

    def __init__(self) -> None:
        self.low, self.range, self.shifts = 0, 2**32 - 1, 0

    def _choose(self, bound: int, bit: int) -> int:
        if bit:
            self.range = bound
        else:
            self.low += bound
            self.range -= bound
        while self.range < 2**24:
            self.range <<= 8
            self.low <<= 8
            self.shifts += 1
        return bit

    def bit(self, probability: int, wanted: int) -> int:
        return self._choose((self.range >> 15) * probability, wanted)

    def flat(self, wanted: int) -> int:
        self.range -= self.range & 1
        return self._choose(self.range >> 1, wanted)

    def finish(self) -> bytes:
        """The number of the interval with most zeros at its end."""
        zeros = max(k for k in range(33) if -(-self.low >> k) << k < self.low + self.range)
        self.low = -(-self.low >> zeros) << zeros
        return self.low.to_bytes(self.shifts + 4, "big").rstrip(b"\0")


class Counter:
    def __init__(self) -> None:
        self.bits = 0.0

    def bit(self, probability: int, wanted: int) -> int:
        self.bits -= math.log2((probability if wanted else 2**15 - probability) / 2**15)
        return wanted

    def flat(self, wanted: int) -> int:
        self.bits += 1
        return wanted


class Bin:
    """The probability of a one, in 1/2**22, and how many decisions it has seen."""

    def __init__(self, prior: int) -> None:
        self.p, self.count = prior << 14, CONFIDENCE

    def code(self, coder: Coder, wanted: int) -> int:
        bit = coder.bit(min(max(self.p >> 7, LEAST), 2**15 - LEAST), wanted)
        self.p += ((2**22 - 1 if bit else 0) - self.p) * RATE[self.count] >> 16
        self.count = min(self.count + 1, COUNT_LIMIT)
        return bit


class Scale:
    def __init__(self, log: int = 0) -> None:
        self.log, self.seen = log, 0

    def learn(self, gradient: int, weight: int) -> None:
        change = abs(gradient) * LEARNING // (self.seen + STRENGTH >> 4)
        self.log += change if gradient > 0 else -change
        self.log = min(max(self.log, -FARTHEST), FARTHEST)
        if self.seen < MOST:
            self.seen += weight


def prior(states: int, level: int, grid: int, decision: int) -> int:
    if states == 1:
        row = "plain later" if decision else "plain"
    else:
        row = (("odd" if grid else "even"), "second", "later")[min(decision, 2)]
    return [int(p) for p in PRIORS[row].split()][min(level, 23)]


class Model:
    def __init__(self, outer: int, inner: int, start: int, states: int) -> None:
        self.trellis = Trellis(states)
        self.levels: list[list[int]] = []  # of all integers so far
        self.row = Scale((start - 128) * 256)
        self.outers = [Scale() for _ in range(outer)]
        self.inners = [Scale() for _ in range(inner)]
        self.bins = [
            [[Bin(prior(states, level, grid, b)) for b in range(BINS)] for grid in range(2)]
            for level in range(LEVELS)
        ]

    def code_row(self, coder: Coder, wanted: list[int]) -> list[int]:
        """Code integers, in an encoder those that are wanted; those that were coded."""
        self.row.seen = 0
        self.levels.append([])
        state, out = 0, []
        for column, z in enumerate(wanted):
            if column % RESTART == 0:
                state = 0
            inner, outer = divmod(column, len(self.outers))
            scales = self.row, self.outers[outer], self.inners[inner]
            grid = self.trellis.grid(state)
            target = abs(z) if self.trellis.states == 1 else (abs(z) + grid) // 2
            at = min(max((sum(s.log for s in scales) >> 8) + 128, 0), 319)
            self.levels[-1].append(at >> 3)
            index = self._index(coder, at >> 3, grid, target)
            negative = index and not coder.flat(int(z > 0))
            value = self.trellis.value(grid, index)
            if value > LARGEST:
                raise ValueError("too large")
            out.append(-value if negative else value)
            gradient = min((256 * index - MEAN[at]) * INVERSE[at] >> 16, STEEPEST)
            for scale in scales:
                scale.learn(gradient, WEIGHT[at])
            state = self.trellis.next(state, index)
        return out

    def _index(self, coder: Coder, level: int, grid: int, wanted: int) -> int:
        lowest = (level - 20) // 2 if level >= 22 else 0
        coarse, bins = 0, self.bins[level][grid]
        while coarse < ESCAPE:
            if not bins[min(coarse, BINS - 1)].code(coder, int(wanted >> lowest > coarse)):
                break
            coarse += 1
        if coarse == ESCAPE:
            coarse += self._escape(coder, (wanted >> lowest) - ESCAPE)
        for b in reversed(range(lowest)):
            coarse = 2 * coarse + coder.flat(wanted >> b & 1)
        if coarse > LARGEST:
            raise ValueError("too large")
        return coarse

    def _escape(self, coder: Coder, wanted: int) -> int:
        bits, base = 2, 0
        while bits < 16 and coder.flat(int(wanted - base >= 2**bits)):
            base += 2**bits
            bits += 1
        for b in reversed(range(bits)):
            base += coder.flat((wanted - base) >> b & 1) << b
        return base


def code(
    coder: Coder, matrix: list[list[int]], outer: int, states: int, start: int
) -> list[list[int]]:
    """Code a matrix in coding order."""
    inner = len(matrix[0]) // outer if matrix else 0
    model = Model(outer, inner, start, states)
    return [model.code_row(coder, row) for row in matrix]
