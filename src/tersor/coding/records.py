"""Factors <-> what the file holds of them: a record for its header, and coded streams."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
"""About what a record takes in the header."""


@dataclass(frozen=True)
class EncodedFactors:
    """Quantized factors as they stand in the file.

    Parameters
    ----------
    tile
        Tile size d.
    scale
        What the product is multiplied by, a float32.
    rank
        Columns of the codebook, k.
    coding
        How the integers are coded.
    streams
        The entropy-coded integers, a section for each slice of the latent: the first holds the
        codebook column by column, then its slice.
    snr
        Signal-to-noise ratio in dB of these factors against the weight that they replace, as
        measured when they were made; NaN if unknown.
    """

    tile: int
    scale: float
    rank: int
    coding: Coding
    streams: tuple[bytes, ...]
    snr: float = float("nan")

    @property
    def coded_bytes(self) -> int:
        """Bytes of the entropy-coded integers."""
        return sum(map(len, self.streams))

    @property
    def nbytes(self) -> int:
        """Bytes in the file, the record in the header included before its compression."""
        return self.coded_bytes + _RECORD_BYTES


def flaw(
    shape: tuple[int, ...], dtype: torch.dtype, tile: int, scale: float, slice_rows: int = 0
) -> str | None:
    """What keeps factors of a weight of this shape and type out of a file; None if nothing."""
    if not shape or math.prod(shape) == 0 or not 1 <= tile <= math.prod(shape[1:]):
        return f"tiles of {tile} elements do not suit a weight of shape {shape}"
    if not dtype.is_floating_point or dtype.itemsize < 2:
        return f"a weight of type {dtype} cannot be factored"
    columns = slice_rows * Tiling(shape, tile).tiles_per_row
    if slice_rows > shape[0] // 2 or columns % BLOCK:
        return f"slices of {slice_rows} rows do not suit a weight of shape {shape}"
    return None if math.isfinite(scale) else f"the scale is {scale}"


def zero(shape: tuple[int, ...], dtype: torch.dtype, snr: float) -> EncodedFactors:
    """Factors of rank 0, all zero: the fewest bytes that a weight can take."""
    columns = Tiling(shape, 1).count
    codebook = torch.zeros(1, 0, dtype=torch.int16)
    latent = torch.zeros(0, columns, dtype=torch.int16)
    return encode(Factors(codebook, latent, 1.0, shape, dtype), snr)


def encode(
    factors: Factors, snr: float = float("nan"), slice_rows: int | None = None
) -> EncodedFactors:
    """Entropy-code quantized factors, in slices of so many weight rows (0: one), or as usual.

    Raises
    ------
    InputError
        If they hold real numbers, too large ones, or do not suit the weight.
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
            f"{factors.shape} has {largest}; use a larger step"
        )
    codebook, latent = (part.to(torch.int16) for part in parts)
    if slice_rows is None:
        slice_rows = factors.tiling.slice_rows if factors.rank else 0
    coding, streams = entropy.encode(codebook, latent, factors.shape[0], slice_rows)
    return EncodedFactors(factors.tiling.size, scale, factors.rank, coding, streams, snr)


def codebook_bytes(factors: Factors) -> int:
    """Bytes that the codebook takes of the streams: the length of a stream of it alone.

    Codebook and latent share one stream, without a boundary at a byte; this is within a few bytes.
    """
    _, (stream,) = entropy.encode(factors.codebook, factors.latent[:, :0], 1)
    return len(stream)


def decode(encoded: EncodedFactors, shape: tuple[int, ...], dtype: torch.dtype) -> Factors:
    """Factors of a weight of this shape and type.

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
"""Codebook (d, k), empty for all slices but the first, and latent of a slice, in natural order."""


def decode_slice(
    encoded: EncodedFactors, shape: tuple[int, ...], position: int, stream: bytes
) -> Part:
    """What the stream of one slice holds.

    Raises
    ------
    FileFormatError
        If it is not what `encode` would have written.
    """
    rows = slice_length(shape[0], encoded.coding.slice_rows, position)
    columns = rows * Tiling(shape, encoded.tile).tiles_per_row
    d = 0 if position else encoded.tile
    return entropy.decode(stream, encoded.coding, d, encoded.rank, columns, rows)


def join(
    encoded: EncodedFactors, shape: tuple[int, ...], dtype: torch.dtype, parts: Sequence[Part]
) -> Factors:
    """Factors of all slices.

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
