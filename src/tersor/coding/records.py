# SPDX-License-Identifier: Apache-2.0
"""Encode factors for the file, as a record for its header and coded streams, and decode them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.coding import entropy
from tersor.coding.entropy import Coding
from tersor.coding.rate import LARGEST
from tersor.errors import FileFormatError, InputError
from tersor.factors import Factors, magnitudes
from tersor.tiling import BLOCK, Tiling, slice_length

_RECORD_BYTES = 24
"""Approximate bytes of a record in the header."""


@dataclass(frozen=True)
class EncodedFactors:
    """Quantized factors in the form in which the file holds them.

    Parameters
    ----------
    tile
        Tile size d.
    scale
        Factor of the product, a float32.
    rank
        Number of columns of the codebook, k.
    coding
        Settings of the coder.
    streams
        Entropy-coded integers, one stream for each slice of the latent. The first stream holds the
        codebook, column by column, and then its slice.
    snr
        Signal-to-noise ratio in dB of these factors, with the weight that they replace as the
        signal, measured when they were made; NaN (default) if unknown.
    """

    tile: int
    scale: float
    rank: int
    coding: Coding
    streams: tuple[bytes, ...]
    snr: float = float("nan")

    @property
    def coded_bytes(self) -> int:
        """Number of bytes of the entropy-coded integers."""
        return sum(map(len, self.streams))

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file: streams, and the header's record before it is deflated."""
        return self.coded_bytes + _RECORD_BYTES


def flaw(
    shape: tuple[int, ...], dtype: torch.dtype, tile: int, scale: float, slice_rows: int = 0
) -> str | None:
    """Return the reason why a file cannot hold factors of such a weight; None if it can.

    Parameters
    ----------
    shape, dtype
        Shape and data type of the weight.
    tile
        Tile size d.
    scale
        Factor of the product.
    slice_rows
        Weight rows of each slice but the last; 0 (default) if there is only one slice.
    """
    if not shape or math.prod(shape) == 0 or not 1 <= tile <= math.prod(shape[1:]):
        return f"tiles of {tile} elements do not suit a weight of shape {shape}"
    if not dtype.is_floating_point or dtype.itemsize < 2:
        return f"a weight of type {dtype} cannot be factored"
    columns = slice_rows * Tiling(shape, tile).tiles_per_row
    if slice_rows > shape[0] // 2 or columns % BLOCK:
        return f"slices of {slice_rows} rows do not suit a weight of shape {shape}"
    return None if math.isfinite(scale) else f"the scale is {scale}"


def zero(shape: tuple[int, ...], dtype: torch.dtype, snr: float) -> EncodedFactors:
    """Return factors of rank 0, of a weight of zeros: the smallest size that a weight can have."""
    columns = Tiling(shape, 1).count
    codebook = torch.zeros(1, 0, dtype=torch.int16)
    latent = torch.zeros(0, columns, dtype=torch.int16)
    return encode(Factors(codebook, latent, 1.0, shape, dtype), snr)


def encode(
    factors: Factors, snr: float = float("nan"), slice_rows: int | None = None
) -> EncodedFactors:
    """Return quantized factors entropy-coded.

    Parameters
    ----------
    factors
        Quantized factors.
    snr
        Signal-to-noise ratio in dB to store; NaN (default) if unknown.
    slice_rows
        Weight rows of each slice but the last; 0: one slice; None (default): as
        `tersor.tiling.Tiling.slice_rows` says.

    Returns
    -------
    EncodedFactors
        Record and streams for the file.

    Raises
    ------
    InputError
        If the factors hold real numbers or too large integers, or do not fit the weight.
    """
    if not factors.quantized:
        raise InputError("only quantized factors can be entropy-coded; these hold real numbers")
    scale = torch.tensor(factors.scale, dtype=torch.float32).item()
    if problem := flaw(factors.shape, factors.dtype, factors.tiling.size, scale):
        raise InputError(f"these factors cannot be stored: {problem}")
    parts = [part.cpu() for part in (factors.codebook, factors.latent)]
    largest = max((int(magnitudes(p, 1).max()) for p in parts if p.numel()), default=0)
    if largest > LARGEST:
        raise InputError(
            f"integers up to {LARGEST} can be stored, a factor of the weight of shape "
            f"{factors.shape} has {largest}; use a larger step size"
        )
    codebook, latent = (part.to(torch.int16) for part in parts)
    if slice_rows is None:
        slice_rows = factors.tiling.slice_rows if factors.rank else 0
    coding, streams = entropy.encode(codebook, latent, factors.shape[0], slice_rows)
    return EncodedFactors(factors.tiling.size, scale, factors.rank, coding, streams, snr)


def codebook_bytes(factors: Factors) -> int:
    """Return the bytes of the codebook: the length of a stream that holds nothing else.

    In the file codebook and latent share a stream, without a boundary at a byte. The result differs
    from the bytes of the codebook there by a few bytes.
    """
    _, (stream,) = entropy.encode(factors.codebook, factors.latent[:, :0], 1)
    return len(stream)


def decode(encoded: EncodedFactors, shape: tuple[int, ...], dtype: torch.dtype) -> Factors:
    """Return the factors of a weight of this shape and type, decoded.

    Raises
    ------
    FileFormatError
        If the streams do not hold such factors.
    """
    parts = [
        decode_slice(encoded, shape, position, stream)
        for position, stream in enumerate(encoded.streams)
    ]
    return join(encoded, shape, dtype, parts)


Part = tuple[Tensor, Tensor]
"""The codebook (d, k), which has d = 0 for all slices but the first, and the latent of a slice, in
natural order."""


def decode_slice(
    encoded: EncodedFactors, shape: tuple[int, ...], position: int, stream: bytes
) -> Part:
    """Return the codebook and latent that the stream of one slice holds.

    Parameters
    ----------
    encoded
        Encoded factors.
    shape
        Shape of the weight.
    position
        Number of the slice, from 0.
    stream
        Stream of the slice.

    Raises
    ------
    FileFormatError
        If `encode` would not have written this stream for any factors.
    """
    rows = slice_length(shape[0], encoded.coding.slice_rows, position)
    columns = rows * Tiling(shape, encoded.tile).tiles_per_row
    d = 0 if position else encoded.tile
    return entropy.decode(stream, encoded.coding, d, encoded.rank, columns, rows)


def pieces(
    encoded: EncodedFactors, shape: tuple[int, ...], dtype: torch.dtype, parts: Iterable[Part]
) -> Iterator[Tensor]:
    """Yield the dense weight a few rows at a time, from the decoded parts of one slice at a time.

    Parameters
    ----------
    encoded, shape, dtype
        As in `join`.
    parts
        Decoded parts of all slices, in their order.

    Yields
    ------
    Tensor
        The next rows, of type ``dtype``.

    Raises
    ------
    FileFormatError
        If integers are too large for an exact product.
    """
    per_row, codebook = Tiling(shape, encoded.tile).tiles_per_row, None
    for first, latent in parts:
        codebook = first if codebook is None else codebook
        rows = (latent.shape[1] // per_row, *shape[1:])
        yield from join(encoded, rows, dtype, [(codebook, latent)]).pieces()


def join(
    encoded: EncodedFactors, shape: tuple[int, ...], dtype: torch.dtype, parts: Sequence[Part]
) -> Factors:
    """Return the factors of a weight, from the decoded parts of all slices.

    Raises
    ------
    FileFormatError
        If their integers are too large for an exact product.
    """
    latents = [latent for _, latent in parts]
    latent = latents[0] if len(parts) == 1 else torch.cat(latents, dim=1)
    try:
        return Factors(parts[0][0], latent, encoded.scale, shape, dtype)
    except InputError as error:
        raise FileFormatError(f"factors in the file are invalid: {error}") from None
