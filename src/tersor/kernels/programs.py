# SPDX-License-Identifier: Apache-2.0
"""Define the Triton programs that `tersor.kernels.gpu` runs on a GPU."""

import os

import triton
import triton.language as tl

ZEROS = tl.constexpr(0x55555555)
"""A word of digits that all encode zero, for integers without higher digits."""


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter runs the programs, for tests on the CPU, without tuning of sizes."""


def tuned(sizes, key, fits=None):
    """Return a decorator that measures sizes (see `shape`) and uses the fastest one that fits.

    It measures at the first call for each combination of the arguments named in ``key``.
    """
    prune = None if fits is None else {"early_config_prune": fits}
    return triton.autotune(sizes[:1] if INTERPRETED else sizes, key, prune_configs_by=prune)


def shape(warps, stages, **blocks):
    """Return a configuration: sizes of blocks, warps of a program, and loads in flight."""
    return triton.Config(blocks, num_warps=warps, num_stages=stages)


def for_vectors(configs, arguments, VECTORS, **others):
    """Return the configurations of few rows for a single vector, else those for tensor cores."""
    return [c for c in configs if (c.kwargs["BLOCK_R"] < 64) == (VECTORS == 1)]


@triton.jit
def product_with_codebook(
    x, codebook, vector, t, p, inputs, tile, stride,
    BINARY: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Return tiles t of a vector times columns p of the codebook, or signed sums p of four."""
    acc = tl.zeros((t.shape[0], p.shape[0]), tl.float32)
    for start in range(0, tile, DEPTH):
        i = start + tl.arange(0, DEPTH)
        at = t[:, None] * tile + i[None, :]
        there = (i < tile)[None, :] & (at < inputs)
        real = tl.load(x + vector * inputs + at, there, 0).to(tl.float32)
        place, there = codebook + i[:, None] * stride, (i < tile)[:, None]
        if BINARY:
            column = tl.zeros((DEPTH, p.shape[0]), tl.float32)
            for k in tl.static_range(4):
                sign = (1 - 2 * (p >> k & 1)).to(tl.float32)
                column += sign[None, :] * tl.load(place + (p // 16 * 4 + k)[None, :], there, 0)
        else:
            column = tl.load(place + p[None, :], there, 0).to(tl.float32)
        acc = tl.dot(real, column, acc, input_precision="ieee")
    return acc


@triton.jit
def store_sums(y, acc, bias, row, vector, rows, batch):
    """Store the sums of this program, (rows, vectors); the first program adds the bias."""
    part = tl.program_id(2)
    if bias is not None:
        biased = tl.where(part == 0, rows, 0)
        acc += tl.load(bias + row, row < biased, 0).to(tl.float32)[:, None]
    place = (part * batch + vector[None, :]) * rows + row[:, None]
    there = (row < rows)[:, None] & (vector < batch)[None, :]
    tl.store(y + place, acc.to(y.dtype.element_ty), there)


@triton.jit
def place_of_column(column, vector, batch, split, wide, narrow, first):
    """Return the place of a column in the transform of a vector.

    The columns of 4 bits come first, then those of 2 bits. In each part, for each of the 8 or 16
    columns of a word in turn, there are all vectors, and for each vector all words.
    """
    is_narrow = column >= split
    within = tl.where(is_narrow, column - split, column)
    shift = tl.where(is_narrow, 4, 3)
    word = within >> shift
    vectors = (within - (word << shift)) * batch + vector
    return tl.where(is_narrow, first, 0) + vectors * tl.where(is_narrow, narrow, wide) + word


@triton.jit
def transform(
    x, codebook, scale, u, inputs, tile, tiles, positions, stride, batch, split, wide, narrow,
    first, DEPTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Store u = scale * C.T @ x by tiles, in the order of the words of digits, but no padding."""
    vector = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    p = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    some = tl.minimum(p, positions - 1)
    acc = product_with_codebook(x, codebook, vector, t, some, inputs, tile, stride, False, DEPTH)
    column = p[None, :] * tiles + t[:, None]
    place = place_of_column(column, vector, batch, split, wide, narrow, first)
    there = (t < tiles)[:, None] & (p < positions)[None, :]
    tl.store(u + place, (acc * tl.load(scale)).to(u.dtype.element_ty), there)


@triton.jit
def add_integers(
    acc, words, u, row, vector, rows, quads, batch, before, stride, narrow, middle, top,
    BITS: tl.constexpr, HIGHER: tl.constexpr, VECTORS: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Return the sums with the products of the integers of one section, and their higher digits.

    The words of 16 rows lie side by side, one word of each row after the other. Words of higher
    digits, each of twice as many integers, lie behind. The integers are exact in the type of u.
    """
    each: tl.constexpr = 32 // BITS
    least: tl.constexpr = 88 if HIGHER else (8 if BITS == 4 else 1)
    group = row // 16 * stride + before
    for start in range(tl.program_id(2) * BLOCK_Q, quads, tl.num_programs(2) * BLOCK_Q):
        q = start + tl.arange(0, BLOCK_Q)
        there = q < quads
        place = (group[:, None] + q[None, :]) * 16 + (row % 16)[:, None]
        word = tl.load(words + place, (row < rows)[:, None] & there[None, :], 0)
        if HIGHER:
            place = (group[:, None] + (quads + narrow + q // 2)[None, :]) * 16 + (row % 16)[:, None]
            there_2 = (row < rows)[:, None] & (q // 2 < middle)[None, :]
            second = tl.load(words + place, there_2, ZEROS) >> (q % 2 * 4)[None, :]
            there_3 = there_2 & (q // 2 < top)[None, :]
            third = tl.load(words + place + middle * 16, there_3, ZEROS) >> (q % 2 * 4)[None, :]
        for j in tl.static_range(each):
            z = word >> (j % 4 * 8 + j // 4 * BITS) & ((1 << BITS) - 1)
            if HIGHER:
                z += (second >> (j % 4 * 8 + j // 4 * 2) & 3) * 16
                z += (third >> (j % 4 * 8 + j // 4 * 2) & 3) * 64
            z -= least
            of_word = u + (j * batch + vector) * quads
            if VECTORS == 1:
                acc += z.to(tl.float32) * tl.load(of_word + q, there, 0).to(tl.float32)[None, :]
            else:
                inside = there[:, None] & (vector < batch)[None, :]
                v = tl.load(of_word[None, :] + q[:, None], inside, 0)
                acc = tl.dot(z.to(v.dtype), v, acc)
    return acc


@tuned(
    [
        shape(4, 4, BLOCK_R=64, BLOCK_Q=16),
        shape(4, 3, BLOCK_R=64, BLOCK_Q=32),
        shape(8, 3, BLOCK_R=128, BLOCK_Q=16),
        shape(4, 2, BLOCK_R=64, BLOCK_Q=16),  # fits the 99 KiB of shared memory of desktop GPUs
        shape(4, 3, BLOCK_R=16, BLOCK_Q=64),
        shape(4, 3, BLOCK_R=16, BLOCK_Q=128),
        shape(4, 3, BLOCK_R=32, BLOCK_Q=32),
    ],
    ["rows", "wide", "narrow", "VECTORS", "HIGHER"],
    for_vectors,
)
@triton.jit
def multiply_integers(
    words, u, starts, escapes, bias, y, rows, batch, split, wide, narrow, first, middle, top,
    HIGHER: tl.constexpr, ESCAPES: tl.constexpr, VECTORS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Store Z @ u: add words of 8 digits of 4 bits, then words of 16 of 2 bits, then escapes.

    A single vector is multiplied without tensor cores, which would waste most of their work.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    if VECTORS == 1:
        vector = tl.program_id(1).to(tl.int64)
        acc = tl.zeros((BLOCK_R, BLOCK_Q), tl.float32)
    else:
        vector = tl.program_id(1).to(tl.int64) * VECTORS + tl.arange(0, VECTORS)
        acc = tl.zeros((BLOCK_R, VECTORS), tl.float32)
    stride = wide + narrow + middle + top
    acc = add_integers(
        acc, words, u, row, vector, rows, wide, batch, 0, stride, narrow, middle, top,
        4, HIGHER, VECTORS, BLOCK_Q,
    )  # fmt: skip
    acc = add_integers(
        acc, words, u + first, row, vector, rows, narrow, batch, wide, stride, 0, 0, 0,
        2, False, VECTORS, BLOCK_Q,
    )  # fmt: skip
    if VECTORS == 1:
        total, vectors = tl.sum(acc, 1)[:, None], vector + tl.arange(0, 1)
    else:
        total, vectors = acc, vector
    if ESCAPES:
        some: tl.constexpr = 2048 // (BLOCK_R * VECTORS) if BLOCK_R * VECTORS < 2048 else 1
        begin = tl.load(starts + row, row < rows, 0)
        number = tl.load(starts + row + 1, row < rows, 0) - begin
        most = tl.max(number)
        passed = tl.zeros((BLOCK_R,), tl.int32)
        for start in range(0, most, some):
            e = start + tl.arange(0, some)
            there = e[None, :] < number[:, None]
            escape = tl.load(escapes + begin[:, None] + e[None, :], there, 0).to(tl.int32)
            column = passed[:, None] + tl.cumsum(escape & 255, 1)
            passed += tl.sum(escape & 255, 1)
            # Programs that share a block take turns with the escapes.
            if start // some % tl.num_programs(2) == tl.program_id(2):
                place = place_of_column(
                    column[:, None, :], vectors[None, :, None], batch, split, wide, narrow, first
                )
                inside = there[:, None, :] & (vectors < batch)[None, :, None]
                real = tl.load(u + place, inside, 0).to(tl.float32)
                total += tl.sum(real * (escape >> 8).to(tl.float32)[:, None, :], 2)
    store_sums(y, total, bias, row, vectors, rows, batch)


@triton.jit
def place_of_byte(row, n, number, BINARY: tl.constexpr):
    """Return the place of byte n of a row: 32 rows are side by side, by a byte (binary) or two."""
    inside = n * 32 + row % 32 if BINARY else n // 2 * 64 + row % 32 * 2 + n % 2
    return row // 32 * (number * 32) + inside


@triton.jit
def make_tables(
    x, codebook, tables, inputs, tile, tiles, entries, stride,
    BINARY: tl.constexpr, VECTORS: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Store the numbers that all codes of 4 bits mean for each tile, all vectors side by side."""
    vector = tl.program_id(0)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    p = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    some = tl.minimum(p, entries - 1)
    acc = product_with_codebook(x, codebook, vector, t, some, inputs, tile, stride, BINARY, DEPTH)
    place = (t[:, None] * entries + p[None, :]) * VECTORS + vector
    tl.store(tables + place, acc, (t < tiles)[:, None] & (p < entries)[None, :])


@tuned(
    [
        shape(4, 2, BLOCK_R=32, BLOCK_N=64),
        shape(4, 2, BLOCK_R=32, BLOCK_N=16),
        shape(4, 2, BLOCK_R=32, BLOCK_N=32),
        shape(8, 2, BLOCK_R=32, BLOCK_N=64),
        shape(4, 2, BLOCK_R=64, BLOCK_N=32),
        shape(8, 2, BLOCK_R=128, BLOCK_N=32),
    ],
    ["rows", "number", "VECTORS"],
)
@triton.jit
def look_up(
    codes, tables, bias, y, rows, batch, number,
    BYTES: tl.constexpr, BINARY: tl.constexpr, VECTORS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store the sums of the numbers that the codes of a row mean; a look-up serves all vectors."""
    row, vector = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, VECTORS)
    acc = tl.zeros((BLOCK_N, BLOCK_R, VECTORS), tl.float32)
    for start in range(tl.program_id(2) * BLOCK_N, number, tl.num_programs(2) * BLOCK_N):
        n = (start + tl.arange(0, BLOCK_N))[:, None]
        there = (n < number) & (row < rows)[None, :]
        code = tl.load(codes + place_of_byte(row[None, :], n, number, BINARY), there, 0)
        code = code.to(tl.int32)
        if BINARY:
            low, high = n * 32 + (code & 15), n * 32 + 16 + (code >> 4)
            acc += entry_of(tables, low, vector, there) + entry_of(tables, high, vector, there)
        else:
            value = (code >> 4 & 7) * (1 - 2 * (code >> 7))
            entry = entry_of(tables, n // BYTES * 16 + (code & 15), vector, there)
            acc += value.to(tl.float32)[:, :, None] * entry
    store_sums(y, tl.sum(acc, 0), bias, row, vector.to(tl.int64), rows, batch)


@triton.jit
def entry_of(tables, entry, vector, there):
    """Return one entry of the tables, for all vectors."""
    place = entry[:, :, None] * vector.shape[0] + vector[None, None, :]
    return tl.load(tables + place, there[:, :, None], 0)


@tuned(
    [
        shape(4, 3, BLOCK_R=64),
        shape(4, 4, BLOCK_R=32),
        shape(4, 2, BLOCK_R=32),  # fits these 99 KiB too
        shape(8, 3, BLOCK_R=64),
        shape(8, 3, BLOCK_R=128),
    ],
    ["rows", "inputs", "VECTORS"],
)
@triton.jit
def multiply_recomposed(
    codes, tables, x, bias, y, rows, batch, inputs, tiles,
    TILE: tl.constexpr, BYTES: tl.constexpr, BINARY: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_T: tl.constexpr, VECTORS: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Store W @ x, with tiles of W recomposed as sums of the table entries of their bytes."""
    padded: tl.constexpr = (TILE + DEPTH - 1) // DEPTH * DEPTH
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    vector = tl.program_id(1).to(tl.int64) * VECTORS + tl.arange(0, VECTORS)
    k = tl.arange(0, BLOCK_T * DEPTH)
    acc = tl.zeros((BLOCK_R, VECTORS), tl.float32)
    for start in range(tl.program_id(2) * BLOCK_T, tiles, tl.num_programs(2) * BLOCK_T):
        t = (start + tl.arange(0, BLOCK_T))[None, :]
        there = (row < rows)[:, None] & (t < tiles)
        for first in tl.static_range(0, TILE, DEPTH):
            weight = tl.zeros((BLOCK_R, BLOCK_T, DEPTH), tl.float32)
            for m in tl.static_range(BYTES):
                place = place_of_byte(row[:, None], t * BYTES + m, tiles * BYTES, BINARY)
                entry = tl.load(codes + place, there, 0).to(tl.int32)
                if BINARY:
                    entry += m * 256
                i = first + tl.arange(0, DEPTH)
                worth = tl.load(tables + entry[:, :, None] * padded + i[None, None, :])
                weight += worth.to(tl.float32)
            i = first + k % DEPTH
            at = (start + k // DEPTH) * TILE + i
            inside = ((i < TILE) & (at < inputs))[:, None] & (vector < batch)[None, :]
            v = tl.load(x + vector[None, :] * inputs + at[:, None], inside, 0)
            acc = tl.dot(tl.reshape(weight, (BLOCK_R, BLOCK_T * DEPTH)).to(v.dtype), v, acc)
    store_sums(y, acc, bias, row, vector, rows, batch)
