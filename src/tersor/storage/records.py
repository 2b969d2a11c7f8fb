"""Factors <-> what the file holds of them: a record for its header, and a payload."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tersor.errors import FileFormatError, InputError
from tersor.factorization.rate import LARGEST
from tersor.factors import Factors, magnitudes
from tersor.storage import entropy
from tersor.storage.entropy import Coding
from tersor.tiling import Tiling

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
    payload
        The entropy-coded integers: the codebook column by column, then the latent.
    snr
        Signal-to-noise ratio in dB of these factors against the weight that they replace, as
        measured when they were made; NaN if unknown.
    """

    tile: int
    scale: float
    rank: int
    coding: Coding
    payload: bytes
    snr: float = float("nan")

    @property
    def nbytes(self) -> int:
        """Bytes in the file, the record in the header included before its compression."""
        return len(self.payload) + _RECORD_BYTES


def flaw(shape: tuple[int, ...], dtype: torch.dtype, tile: int, scale: float) -> str | None:
    """What keeps factors of a weight of this shape and type out of a file; None if nothing."""
    if not shape or math.prod(shape) == 0 or not 1 <= tile <= math.prod(shape[1:]):
        return f"tiles of {tile} elements do not suit a weight of shape {shape}"
    if not dtype.is_floating_point or dtype.itemsize < 2:
        return f"a weight of type {dtype} cannot be factored"
    return None if math.isfinite(scale) else f"the scale is {scale}"


def zero(shape: tuple[int, ...], dtype: torch.dtype, snr: float) -> EncodedFactors:
    """Factors of rank 0, all zero: the fewest bytes that a weight can take."""
    columns = Tiling(shape, 1).count
    codebook = torch.zeros(1, 0, dtype=torch.int16)
    latent = torch.zeros(0, columns, dtype=torch.int16)
    return encode(Factors(codebook, latent, 1.0, shape, dtype), snr)


def encode(factors: Factors, snr: float = float("nan")) -> EncodedFactors:
    """Entropy-code quantized factors.

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
    coding, payload = entropy.encode(codebook, latent, factors.shape[0])
    return EncodedFactors(factors.tiling.size, scale, factors.rank, coding, payload, snr)


def codebook_bytes(factors: Factors) -> int:
    """Bytes that the codebook takes of the payload: the length of a stream of it alone.

    Codebook and latent share one stream, without a boundary at a byte; this is within a few bytes.
    """
    _, payload = entropy.encode(factors.codebook, factors.latent[:, :0], 1)
    return len(payload)


def decode(encoded: EncodedFactors, shape: tuple[int, ...], dtype: torch.dtype) -> Factors:
    """Factors of a weight of this shape and type.

    Raises
    ------
    FileFormatError
        If the payload does not hold such factors.
    """
    columns = Tiling(shape, encoded.tile).count
    codebook, latent = entropy.decode(
        encoded.payload, encoded.coding, encoded.tile, encoded.rank, columns, shape[0]
    )
    try:
        return Factors(codebook, latent, encoded.scale, shape, dtype)
    except InputError as error:
        raise FileFormatError(f"factors in the file are invalid: {error}") from None
