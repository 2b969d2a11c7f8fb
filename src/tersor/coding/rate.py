"""Rate: what the integers of a factor cost in the file, and what they must cost at the least.

The coder is adaptive (docs/format.md, Entropy model): an integer's expected magnitude is learnt
from those coded before it in its row, its weight row and its position, and the binary decisions
that spell it out have probabilities that adapt for each level of that. There are no tables in the
file. Everything is integer arithmetic, the same on every machine, in C++ (``csrc/model.hpp``).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tersor import _native
from tersor.tiling import Rows

Floats = NDArray[np.float64]

LARGEST = 4095
"""Largest magnitude of an integer that can be coded."""

TRELLISES: tuple[int, ...] = (64, 32, 16, 8, 4)
"""Numbers of states of the trellises that the coder knows, besides 1: no trellis."""

_FIRST, _LAST = 0, 255
"""Range of `starting_level`, which is a byte in the file."""


def starting_level(integers: Tensor, states: int = 1) -> int:
    """Expected magnitude that coding begins with: 16 log2 of that of the first row, plus 128."""
    if not integers.numel():
        return 128
    first = np.abs(integers[0].numpy()).astype(np.int64)
    mean = int((first if states == 1 else (first + 1) // 2).sum()) / first.size
    level = 128 + round(16 * math.log2(mean)) if mean > 0 else _FIRST
    return min(max(level, _FIRST), _LAST)


def analyse(integers: Tensor, outer: Rows, states: int = 1) -> _native.Analysis:
    """What a matrix of integers (rows, n), in coding order, costs: bits of each row, and prices.

    Parameters
    ----------
    integers
        Integers of any type, reachable by the trellis.
    outer
        Length of a run: columns of one position, one for each weight row; of those of each slice.
    states
        States of the trellis; 1: none.
    """
    matrix = integers.to(torch.float32).contiguous().numpy()
    lengths = [outer] if isinstance(outer, int) else list(outer)
    return _native.analyse(matrix, lengths, states, starting_level(integers, states))


def row_bits(integers: Tensor, outer: Rows | None = None, states: int = 1) -> Floats:
    """Bits of each row of a (rows, n) tensor of integers when coded one after the other."""
    if not integers.numel():
        return np.zeros(integers.shape[0])
    return np.asarray(analyse(integers, outer or integers.shape[1], states).bits)


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
