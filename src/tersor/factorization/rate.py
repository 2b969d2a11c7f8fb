"""Rate: what the integers of a factor cost in the file, and what they must cost at the least.

Each row of integers is coded with a static model of its own: a probability for zero, and magnitudes
whose odds decay geometrically, faster or slower than geometrically by a curvature that all rows of
one factor share. Two bytes a row and one for all describe distributions from Laplacian to Gaussian
with their own mass at zero; on latents at 0.5 to 4 bits the model costs less than 0.5 % over the
empirical entropy. Everything here is integer arithmetic, so that every machine builds the same
tables from the same bytes (docs/format.md, Entropy model).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

PRECISION = 24
"""Bits of a frequency: the table of a row totals 2**24."""

LARGEST = 2047
"""Largest magnitude of an integer that can be coded."""

CURVATURES = 12
"""Number of curvatures; the fifth is geometric decay, larger ones fall faster."""

_GEOMETRIC = 4
_TOTAL = 1 << PRECISION
_UNIT = 1 << 30
_SIXTEENTHS = np.array([round(_UNIT * 2 ** (-j / 16)) for j in range(16)], dtype=np.int64)


def _power(byte: Integers) -> Integers:
    """2**(-byte / 16) in units of 2**-30."""
    return np.asarray(_SIXTEENTHS[byte & 15] >> (byte >> 4))


def _magnitude_weights(decay: Integers, curvature: Integers, largest: int) -> Integers:
    """Relative odds of the magnitudes 1 to ``largest``, along a new last axis; 2**30 for 1."""
    gap = _power(decay)
    ratio = _UNIT - np.maximum(gap, 1)
    bend = np.maximum(_UNIT - ((gap * (curvature - _GEOMETRIC)) >> 3), 0)
    weights = np.empty((*np.broadcast_shapes(decay.shape, curvature.shape), largest), np.int64)
    weights[..., 0] = _UNIT
    for m in range(1, largest):
        weights[..., m] = (weights[..., m - 1] * ratio) >> 30
        ratio = np.minimum((ratio * bend) >> 30, _UNIT - 1)
    return weights


@dataclass(frozen=True)
class EntropyModel:
    """Static model of the integers of one factor, one distribution per row.

    Parameters
    ----------
    zero
        One byte per row: integers are nonzero with probability 2**(-zero / 16).
    decay
        One byte per row: magnitude 2 is 1 - 2**(-decay / 16) times as likely as magnitude 1.
    curvature
        0 to `CURVATURES` - 1: how that ratio changes from one magnitude to the next.
    largest
        Largest magnitude that occurs, 0 to `LARGEST`.
    """

    zero: Integers
    decay: Integers
    curvature: int
    largest: int

    def frequencies(self) -> Integers:
        """Frequencies of -largest to largest: (rows, 2 * largest + 1), each row totals 2**24."""
        weights = _magnitude_weights(self.decay, np.array(self.curvature), self.largest)
        half = np.clip(_power(self.zero) >> 7, self.largest, (_TOTAL >> 1) - 1)[:, None]
        side = 1 + weights * (half - self.largest) // weights.sum(axis=1, keepdims=True)
        middle = _TOTAL - 2 * side.sum(axis=1, keepdims=True)
        return np.concatenate([side[:, ::-1], middle, side], axis=1)

    def bits(self) -> Floats:
        """Cost in bits of the magnitudes 0 to largest, the sign included: (rows, largest + 1)."""
        if self.largest == 0:
            return np.zeros((len(self.zero), 1))
        return PRECISION - np.log2(self.frequencies()[:, self.largest :])


@functools.lru_cache(maxsize=8)
def _family(largest: int) -> tuple[int, Floats]:
    """Number of decays worth trying, and bits (largest, curvatures * decays) given nonzero."""
    decays = min(256, 16 * largest.bit_length() + 24)
    curvature, decay = np.meshgrid(np.arange(CURVATURES), np.arange(decays), indexing="ij")
    weights = _magnitude_weights(decay.ravel(), curvature.ravel(), largest).astype(np.float64)
    weights += weights.sum(axis=1, keepdims=True) / _TOTAL
    return decays, -np.log2(weights / weights.sum(axis=1, keepdims=True)).T.copy()


def fit(counts: Integers) -> EntropyModel:
    """Cheapest model for integers of which ``counts[row, m]`` have magnitude ``m``.

    Parameters
    ----------
    counts
        Shape (rows, largest + 1), the magnitudes that occur.
    """
    rows, largest = counts.shape[0], counts.shape[1] - 1
    total, nonzero = counts.sum(axis=1), counts[:, 1:].sum(axis=1)
    share = np.maximum(nonzero, 0.5) / np.maximum(total, 1)
    zero = np.clip(np.rint(-16 * np.log2(share)), 0, 255).astype(np.int64)
    if largest == 0:
        return EntropyModel(zero, np.zeros(rows, np.int64), 0, 0)
    # The family is kept for a few supports only; the odds beyond the largest magnitude are moot.
    decays, costs = _family(max(4, 1 << (largest - 1).bit_length()))
    cost = (counts[:, 1:] @ costs[:largest]).reshape(rows, CURVATURES, decays)
    curvature = int(cost.min(axis=2).sum(axis=0).argmin())
    return EntropyModel(zero, cost[:, curvature].argmin(axis=1), curvature, largest)


def count_magnitudes(integers: Tensor) -> Integers:
    """How often each magnitude occurs in each row of a (rows, n) tensor: (rows, largest + 1)."""
    rows = integers.shape[0]
    magnitudes = integers.abs().to(torch.int64)
    width = int(magnitudes.max()) + 1 if magnitudes.numel() else 1
    magnitudes += torch.arange(rows, device=integers.device)[:, None] * width
    counts = torch.bincount(magnitudes.reshape(-1), minlength=rows * width)
    return counts.reshape(rows, width).cpu().numpy()


def row_bits(integers: Tensor) -> Floats:
    """Bits of each row of a (rows, n) tensor of integers under the model fitted to it."""
    counts = count_magnitudes(integers)
    return np.asarray((counts * fit(counts).bits()).sum(axis=1))


def distortion_bound(spectrum: Floats, rate: float) -> float:
    """Least mean squared error at a rate, for Gaussian tiles: reverse water-filling.

    Parameters
    ----------
    spectrum
        Eigenvalues of the tiles' covariance, shape (d,).
    rate
        Bits per weight, 0 or more.

    Returns
    -------
    float
        Squared error per weight (Cover and Thomas, Elements of Information Theory, 10.3.3).
    """
    values = np.sort(np.maximum(np.asarray(spectrum, np.float64), 0))[::-1]
    values = values[values > 0]
    if not len(values):
        return 0.0
    bits = rate * len(spectrum)
    logs = np.cumsum(np.log2(values))
    for active in range(len(values), 0, -1):
        level = 2 ** ((logs[active - 1] - 2 * bits) / active)
        if level <= values[active - 1]:
            break
    return float(np.minimum(values, level).sum() / len(spectrum))
