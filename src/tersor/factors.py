# SPDX-License-Identifier: Apache-2.0
"""Define `Factors`, the result of factoring a weight, and the product that gives the weight back.

A weight, cut into tiles (see `tersor.tiling`), is the product of two small matrices and a number::

    tiles (d, n)  =  scale * codebook (d, k) @ latent (k, n)

Quantized factors are integers. Their product is exact in float32 for any order of the additions, as
long as every partial sum has a magnitude of at most 2**24. Therefore a file gives the same weights
on every machine, for any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.tiling import Tiling

EXACT_INTEGERS = 2**24
"""Magnitude up to which all integers are exact in float32 (24-bit significand, IEEE 754)."""

_PIECE = 1 << 18
"""Number of weights that `Factors.pieces` recomposes at once."""


def multiply(codebook: Tensor, latent: Tensor, scale: Tensor | float) -> Tensor:
    """Return ``scale * codebook @ latent`` in float32, also within an autocast region."""
    with torch.autocast(device_type=codebook.device.type, enabled=False):
        product = codebook.to(torch.float32) @ latent.to(torch.float32)
        # A sum of integers is never -0, but a product of floats can be: adding 0 makes it +0.
        return product.add_(0.0) * scale


@dataclass(frozen=True, eq=False)
class Factors:
    """A weight tensor as the product of a codebook and a latent.

    Parameters
    ----------
    codebook
        C, shape (d, k): integers (int16) if quantized, else float32.
    latent
        Z, shape (k, n): integers (int16) if quantized, else float32.
    scale
        Factor of the product; a number that float32 can hold.
    shape
        Shape of the weight. The tile size is d; n follows from both.
    dtype
        Data type of the weight that `recompose` returns.

    Raises
    ------
    InputError
        If the shapes do not fit together, or integers are too large for an exact product.

    Examples
    --------
    >>> codebook = torch.tensor([[3], [-1]], dtype=torch.int16)
    >>> latent = torch.tensor([[2, 0, 1, -1]], dtype=torch.int16)
    >>> factors = tersor.Factors(codebook, latent, scale=0.5, shape=(2, 4))
    >>> factors.recompose()
    tensor([[ 3.0000, -1.0000,  0.0000,  0.0000],
            [ 1.5000, -0.5000, -1.5000,  0.5000]])
    """

    codebook: Tensor
    latent: Tensor
    scale: float
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        d, k = self.codebook.shape
        if tuple(self.latent.shape) != (k, self.tiling.count):
            raise InputError(
                f"factors do not fit together: a weight of shape {self.shape}, tiles of {d} and a "
                f"codebook of {k} columns need a latent of shape {(k, self.tiling.count)}, "
                f"got {tuple(self.latent.shape)}"
            )
        if self.quantized and largest_sum(self.codebook, self.latent) > EXACT_INTEGERS:
            raise InputError(
                f"the integers of codebook and latent are too large for an exact product: sums may "
                f"reach {largest_sum(self.codebook, self.latent)}, at most {EXACT_INTEGERS} is "
                "allowed; use a larger step size"
            )

    @property
    def tiling(self) -> Tiling:
        """Return the way in which the weight is cut into tiles."""
        return Tiling(self.shape, self.codebook.shape[0])

    @property
    def rank(self) -> int:
        """Return the number of columns of the codebook, k."""
        return self.codebook.shape[1]

    @property
    def quantized(self) -> bool:
        """Return whether both factors are integers, so that they can be entropy-coded."""
        return not (self.codebook.is_floating_point() or self.latent.is_floating_point())

    @property
    def numel(self) -> int:
        """Return the number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the bytes of these factors in a file.

        Quantized factors are entropy-coded each time to measure their size. Real factors count the
        bytes of their elements in memory.
        """
        # Imported here since coding imports this module: only the coder can tell the size.
        from tersor.coding.records import encode

        if not self.quantized:
            return self.codebook.nbytes + self.latent.nbytes
        return encode(self).nbytes

    @property
    def bits_per_weight(self) -> float:
        """Return the bits per weight, ``8 * nbytes / numel``."""
        return 8 * self.nbytes / self.numel

    def recompose(self) -> Tensor:
        """Multiply the factors.

        Returns
        -------
        Tensor
            The dense weight, of shape ``shape`` and type ``dtype``, where the latent is.
        """
        weight = torch.empty(self.shape, dtype=self.dtype, device=self.latent.device)
        start = 0
        for part in self.pieces():
            weight[start : start + len(part)] = part
            start += len(part)
        return weight

    def pieces(self) -> Iterator[Tensor]:
        """Yield the dense weight a few rows at a time, so that the working memory fits the cache.

        Yields
        ------
        Tensor
            The next rows, of type ``dtype``. Factors of real numbers are yielded in one piece.
        """
        columns, per_row = self.codebook.to(torch.float32), self.tiling.tiles_per_row
        # The product of integers is exact; that of real numbers may depend on the number of rows.
        rows = max(1, _PIECE // self.tiling.row_length) if self.quantized else self.shape[0]
        for start in range(0, self.shape[0], rows):
            latent = self.latent[:, start * per_row : (start + rows) * per_row]
            shape = (latent.shape[1] // per_row, *self.shape[1:])
            tiles = multiply(columns, latent, self.scale)
            yield Tiling(shape, self.tiling.size).join(tiles).to(self.dtype)


def largest_sum(codebook: Tensor, latent: Tensor) -> int:
    """Return a bound of the magnitude of all partial sums of ``codebook @ latent``, of integers."""
    if codebook.numel() == 0 or latent.numel() == 0:
        return 0
    return int((magnitudes(codebook, 0) * magnitudes(latent, 1)).sum())


def magnitudes(integers: Tensor, axis: int) -> Tensor:
    """Return the largest magnitudes along an axis of a matrix of integers, int64."""
    least, most = integers.aminmax(dim=axis)
    return torch.maximum(-least.to(torch.int64), most.to(torch.int64))


def signal_to_noise(weight: Tensor, factors: Factors) -> float:
    """Return the signal-to-noise ratio in dB: 10 log10(sum W^2 / sum (W - CZ)^2)."""
    reference = weight.detach().to(torch.float32)
    noise = float(((reference - factors.recompose()) ** 2).sum(dtype=torch.float64))
    return decibels(float((reference**2).sum(dtype=torch.float64)), noise)


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10 of the ratio of two sums of squares; infinite where one of them is 0."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
