"""Tensors that are kept as they are, or rounded to bfloat16: byte planes, compressed in groups.

The bytes of a group's elements are sorted by significance: first the most significant byte of every
element of every tensor, then the next. Signs and exponents, which repeat, come together that way.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tersor.errors import FileFormatError

GROUP_BYTES = 1 << 20
"""Tensors share a group until it holds this many bytes."""


def group(sizes: Iterable[int]) -> Iterator[list[int]]:
    """Positions of consecutive tensors, of these sizes in bytes, that share a group."""
    members: list[int] = []
    total = 0
    for position, size in enumerate(sizes):
        if members and total + size > GROUP_BYTES:
            yield members
            members, total = [], 0
        members.append(position)
        total += size
    if members:
        yield members


def _as_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """Elements as rows of bytes, the most significant first: (numel, itemsize)."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    flat = plain.reshape(-1).view(torch.uint8).numpy()
    return flat.reshape(-1, tensor.dtype.itemsize)[:, ::-1]


def encode(tensors: Sequence[Tensor]) -> bytes:
    """Compress one group (raw deflate; a new block begins with each plane)."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    parts = []
    elements = [_as_bytes(tensor) for tensor in tensors]
    for plane in range(max((e.shape[1] for e in elements), default=0)):
        for element in elements:
            if plane < element.shape[1]:
                parts.append(compressor.compress(element[:, plane].tobytes()))
        parts.append(compressor.flush(zlib.Z_BLOCK))
    return b"".join([*parts, compressor.flush()])


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


def decode(
    payload: bytes, specs: Sequence[tuple[torch.dtype, tuple[int, ...]]], what: str
) -> list[Tensor]:
    """The tensors of one group from their data types and shapes."""
    size = sum(math.prod(shape) * dtype.itemsize for dtype, shape in specs)
    # Before any tensor is made: a file that claims more than it holds costs no memory.
    data = np.frombuffer(inflate(payload, size, what), np.uint8)
    tensors = [torch.empty(shape, dtype=dtype) for dtype, shape in specs]
    views = [
        t.reshape(-1).view(torch.uint8).numpy().reshape(-1, t.dtype.itemsize)[:, ::-1]
        for t in tensors
    ]
    start = 0
    for plane in range(max((v.shape[1] for v in views), default=0)):
        for view in views:
            if plane < view.shape[1]:
                view[:, plane] = data[start : start + len(view)]
                start += len(view)
    return tensors
