"""Factors <-> what the file holds of them: a record for its header, and a payload."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from tersor.errors import FileFormatError, InputError
from tersor.factorization.rate import LARGEST, EntropyModel, count_magnitudes, fit
from tersor.factors import Factors
from tersor.storage import entropy
from tersor.tiling import Tiling

_RECORD_BYTES = 24
"""About what a record takes in the header besides the two bytes per row of its model."""


@dataclass(frozen=True)
class EncodedFactors:
    """Quantized factors as they stand in the file.

    Parameters
    ----------
    tile
        Tile size d.
    scale
        What the product is multiplied by, a float32.
    codebook, latent
        Entropy models: one row for the whole codebook, k rows for the latent.
    payload
        The entropy-coded integers: codebook (d, k) row by row, then latent (k, n).
    snr
        Signal-to-noise ratio in dB of these factors against the weight that they replace, as
        measured when they were made; NaN if unknown.
    """

    tile: int
    scale: float
    codebook: EntropyModel
    latent: EntropyModel
    payload: bytes
    snr: float = float("nan")

    @property
    def rank(self) -> int:
        """Columns of the codebook, k."""
        return len(self.latent.zero)

    @property
    def nbytes(self) -> int:
        """Bytes in the file, the record in the header included before its compression."""
        return len(self.payload) + 2 * self.rank + _RECORD_BYTES


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
    codebook = factors.codebook.reshape(1, -1)
    for part in (codebook, factors.latent):
        if part.numel() and int(part.to(torch.int32).abs().amax()) > LARGEST:
            raise InputError(
                f"integers up to {LARGEST} can be stored, a factor of the weight of shape "
                f"{factors.shape} has {int(part.to(torch.int32).abs().amax())}; use a larger step"
            )
    matrices = [m.cpu() for m in (codebook, factors.latent)]
    models = [fit(count_magnitudes(m)) for m in matrices]
    integers = [m.numpy().astype(np.int32) for m in matrices]
    payload = entropy.encode(list(zip(integers, models, strict=True)))
    return EncodedFactors(factors.tiling.size, scale, models[0], models[1], payload, snr)


def decode(encoded: EncodedFactors, shape: tuple[int, ...], dtype: torch.dtype) -> Factors:
    """Factors of a weight of this shape and type.

    Raises
    ------
    FileFormatError
        If the payload does not hold such factors.
    """
    columns = Tiling(shape, encoded.tile).count
    codebook, latent = entropy.decode(
        encoded.payload,
        [(encoded.codebook, encoded.tile * encoded.rank), (encoded.latent, columns)],
    )
    try:
        return Factors(
            torch.from_numpy(codebook.reshape(encoded.tile, encoded.rank).astype(np.int16)),
            torch.from_numpy(latent.astype(np.int16)),
            encoded.scale,
            shape,
            dtype,
        )
    except InputError as error:
        raise FileFormatError(f"factors in the file are invalid: {error}") from None
