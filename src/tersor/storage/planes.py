# SPDX-License-Identifier: Apache-2.0
"""Encode elements of tensors as a deflate stream: planes of bytes, the most significant byte first.

The bytes of the elements of a group are sorted by significance: first the most significant byte of
every element of every tensor, then the next one. Floating-point numbers that are stored exactly are
first rotated by one bit, which moves their sign from the front to the end. The first byte of F32
and BF16 is then exactly the exponent, as in ZipNN (arXiv 2411.05239) and DFloat11 (arXiv
2504.11651). Exponents of trained weights take less than 3 of their 8 bits; mantissas are noise,
which deflate stores as it is. Rounded tensors are biases and parameters of normalisation, often of
one sign; they are smaller without the rotation.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tersor.errors import FileFormatError

Words = NDArray[np.unsignedinteger[Any]]

MOST_EXPANSION = 1032
"""Most bytes that one byte of a deflate stream can give: a match of 258 bytes takes 2 bits."""

_SIGN_IN_FRONT = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64)


class _Way(NamedTuple):
    """A setting of zlib, and a factor on its result's size when settings are compared."""

    level: int
    strategy: int
    weight: float


_WAYS = (
    _Way(0, zlib.Z_DEFAULT_STRATEGY, 1.0),  # noise is stored as it is
    _Way(9, zlib.Z_HUFFMAN_ONLY, 1.001),  # exponents: searching matches costs more than it saves
    _Way(6, zlib.Z_FILTERED, 1.03),  # repetitive planes; slow, so it must save at least 3 %
)

_SMALL = 1 << 16
"""Largest size in bytes of a plane that is tried as a whole."""

_SAMPLE = 4096
"""Bytes taken at a quarter and at three quarters of a larger plane to choose its setting of zlib.
"""


class Elements(NamedTuple):
    """Consecutive elements of a tensor, in memory.

    Parameters
    ----------
    words
        The elements as unsigned integers; a complex number is two of them.
    turned
        Whether the file stores the elements with their sign bit at the end.
    """

    words: Words
    turned: bool


def elements(tensor: Tensor, exact: bool) -> Elements:
    """Return the elements of a tensor in row-major order, without a copy if they lie so on the CPU.

    Parameters
    ----------
    tensor
        Any dense tensor, on any device.
    exact
        Whether the tensor is stored exactly, not rounded; only then the sign bit is moved.
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    size = 4 if tensor.dtype == torch.complex64 else tensor.dtype.itemsize
    flat = plain.as_strided((plain.numel(),), (1,))  # numpy gives empty ones a stride of 0
    words = flat.view(torch.uint8).numpy().view(f"u{size}")
    return Elements(words, exact and tensor.dtype in _SIGN_IN_FRONT)


def encode(members: Sequence[Elements]) -> bytes:
    """Return one group compressed as raw deflate, with a new block at the start of each plane."""
    runs = [(list(run), way) for way, run in groupby(_planes(members), key=_best_way)]
    # Each run but the last ends at a whole byte and leaves the stream open for the next one.
    parts = [_deflate(run, way, zlib.Z_SYNC_FLUSH) for run, way in runs[:-1]]
    return b"".join([*parts, _deflate(*runs[-1], zlib.Z_FINISH)])


def _deflate(planes: Iterable[bytes], way: _Way, end: int) -> bytes:
    compressor = zlib.compressobj(way.level, zlib.DEFLATED, -15, 9, way.strategy)
    parts = []
    for plane in planes:
        parts += [compressor.compress(plane), compressor.flush(zlib.Z_BLOCK)]
    return b"".join([*parts, compressor.flush(end)])


def _planes(members: Sequence[Elements]) -> Iterator[bytes]:
    """Yield the planes of a group, from the most significant byte to the least."""
    words = [_sign_last(m.words) if m.turned else m.words for m in members]
    for plane in range(1, 1 + max(w.itemsize for w in words)):
        parts = [w >> 8 * (w.itemsize - plane) for w in words if plane <= w.itemsize]
        yield b"".join(part.astype(np.uint8).tobytes() for part in parts)


def _sign_last(words: Words) -> Words:
    return cast(Words, words << 1 | words >> 8 * words.itemsize - 1)


def _best_way(plane: bytes) -> _Way:
    """Return the setting of zlib that makes a plane smallest, or a sample of it."""
    sample = _sample(plane)
    return min(_WAYS, key=lambda way: way.weight * len(_deflate([sample], way, zlib.Z_FINISH)))


def _sample(plane: bytes) -> bytes:
    if len(plane) <= _SMALL:
        return plane
    starts = len(plane) // 4, len(plane) * 3 // 4
    return b"".join(plane[s : s + _SAMPLE] for s in starts)


def inflate(payload: bytes, size: int, what: str) -> bytes:
    """Return the bytes of raw deflate data, which must be exactly ``size`` bytes.

    Parameters
    ----------
    payload
        Raw deflate data.
    size
        Bytes that the data must give.
    what
        Name of the data, for error messages.

    Raises
    ------
    FileFormatError
        If the data is damaged or gives another number of bytes. At most ``size + 1`` bytes are
        decompressed.
    """
    decompressor = zlib.decompressobj(-15)
    try:
        data = decompressor.decompress(payload, size + 1)
    except zlib.error as error:
        raise FileFormatError(f"{what} is damaged: {error}") from None
    if len(data) != size or not decompressor.eof or decompressor.unused_data:
        raise FileFormatError(f"{what} is damaged: {size} bytes expected, {len(data)} found")
    return data


def decode(payload: bytes, members: Sequence[Elements], what: str) -> None:
    """Fill the elements of one group, in place.

    Parameters
    ----------
    payload
        The compressed group, as `encode` gave it.
    members
        Elements to fill, in the order of the group.
    what
        Name of the group, for error messages.

    Raises
    ------
    FileFormatError
        If the payload does not hold exactly these elements; then none of them is written.
    """
    size = sum(m.words.nbytes for m in members)
    planes = np.frombuffer(inflate(payload, size, what), np.uint8)
    start = 0
    for plane in range(max(m.words.itemsize for m in members)):
        for words, _ in members:
            if plane < words.itemsize:
                _append(words, planes[start : start + len(words)], first=plane == 0)
                start += len(words)
    for words, turned in members:
        if turned:
            signs = words << 8 * words.itemsize - 1
            words >>= 1
            words |= signs


def _append(words: Words, part: NDArray[np.uint8], first: bool) -> None:
    """Add a least significant byte to each word, in place, because new memory would take longer."""
    if first:
        words[:] = part
    else:
        words <<= 8
        words |= part
