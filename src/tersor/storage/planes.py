"""Elements of tensors <-> a deflate stream: planes of bytes, the most significant ones first.

The bytes of a group's elements are sorted by significance: first the most significant byte of every
element of every tensor, then the next. Floating-point numbers that are kept exactly are turned by
one bit before, which brings their sign from the front to the end: then the first byte of F32 and
BF16 is the exponent and nothing else, as in ZipNN (arXiv 2411.05239) and DFloat11 (arXiv
2504.11651). Exponents of trained weights take less than 3 of their 8 bits; mantissas are noise,
which deflate stores. Rounded tensors are biases and what normalisation needs, often of one sign:
left as they are, they are smaller.
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
"""No byte of a deflate stream gives more bytes than this: 258 for 2 bits."""

_SIGN_IN_FRONT = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64)


class _Way(NamedTuple):
    """Level and strategy of zlib, and how its size counts when the best way is chosen."""

    level: int
    strategy: int
    weight: float


_WAYS = (
    _Way(0, zlib.Z_DEFAULT_STRATEGY, 1.0),  # noise: stored
    _Way(9, zlib.Z_HUFFMAN_ONLY, 1.001),  # exponents: matches would cost more than they gain
    _Way(6, zlib.Z_FILTERED, 1.03),  # what repeats; slow, so it must gain something
)

_SMALL = 1 << 16
"""Planes of at most so many bytes are tried as a whole."""

_SAMPLE = 4096
"""Bytes at a quarter and at three quarters of a larger plane by which its way is chosen."""


class Elements(NamedTuple):
    """Consecutive elements of a tensor, in memory.

    Parameters
    ----------
    words
        The elements as unsigned integers; a complex number is two of them.
    turned
        Whether the file has them with their sign at the end.
    """

    words: Words
    turned: bool


def elements(tensor: Tensor, exact: bool) -> Elements:
    """The elements of a tensor, row by row; of one that lies so in memory, without a copy.

    Parameters
    ----------
    exact
        Whether the tensor is kept as it was, not rounded.
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    size = 4 if tensor.dtype == torch.complex64 else tensor.dtype.itemsize
    flat = plain.as_strided((plain.numel(),), (1,))  # numpy gives empty ones a stride of 0
    words = flat.view(torch.uint8).numpy().view(f"u{size}")
    return Elements(words, exact and tensor.dtype in _SIGN_IN_FRONT)


def encode(members: Sequence[Elements]) -> bytes:
    """Compress one group (raw deflate; a new block begins with each plane)."""
    runs = [(list(run), way) for way, run in groupby(_planes(members), key=_best_way)]
    # All but the last end at a whole byte, but do not end the stream: the next one may follow.
    parts = [_deflate(run, way, zlib.Z_SYNC_FLUSH) for run, way in runs[:-1]]
    return b"".join([*parts, _deflate(*runs[-1], zlib.Z_FINISH)])


def _deflate(planes: Iterable[bytes], way: _Way, end: int) -> bytes:
    compressor = zlib.compressobj(way.level, zlib.DEFLATED, -15, 9, way.strategy)
    parts = []
    for plane in planes:
        parts += [compressor.compress(plane), compressor.flush(zlib.Z_BLOCK)]
    return b"".join([*parts, compressor.flush(end)])


def _planes(members: Sequence[Elements]) -> Iterator[bytes]:
    words = [_sign_last(m.words) if m.turned else m.words for m in members]
    for plane in range(1, 1 + max(w.itemsize for w in words)):
        parts = [w >> 8 * (w.itemsize - plane) for w in words if plane <= w.itemsize]
        yield b"".join(part.astype(np.uint8).tobytes() for part in parts)


def _sign_last(words: Words) -> Words:
    return cast(Words, words << 1 | words >> 8 * words.itemsize - 1)


def _best_way(plane: bytes) -> _Way:
    sample = _sample(plane)
    return min(_WAYS, key=lambda way: way.weight * len(_deflate([sample], way, zlib.Z_FINISH)))


def _sample(plane: bytes) -> bytes:
    if len(plane) <= _SMALL:
        return plane
    starts = len(plane) // 4, len(plane) * 3 // 4
    return b"".join(plane[s : s + _SAMPLE] for s in starts)


def inflate(payload: bytes, size: int, what: str) -> bytes:
    """Decompress raw deflate data that must give exactly ``size`` bytes.

    Raises
    ------
    FileFormatError
        If it gives anything else; never makes more than ``size`` bytes.
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
    """Fill the elements of one group.

    Raises
    ------
    FileFormatError
        If the payload does not hold as many; then nothing is written.
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
    """Add a least significant byte to each word, in place: new memory would cost more than this."""
    if first:
        words[:] = part
    else:
        words <<= 8
        words |= part
