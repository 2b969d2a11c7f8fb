# SPDX-License-Identifier: Apache-2.0
"""Compute the rate of a factor, the bits of its integers in the file, and its theoretical bound.

The coder is adaptive (docs/format.md, Entropy model). It learns the expected magnitude of an
integer from the integers before it in the same row, weight row and position. It spells the integer
out in binary decisions, whose probabilities adapt for each level of the expected magnitude. The
file has no tables. All of this is integer arithmetic in C++ (``csrc/model.hpp``), with the same
result on every machine.
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

LARGEST = _native.LARGEST
"""Largest magnitude of an integer that can be coded."""

TRELLISES: tuple[int, ...] = (64, 32, 16, 8, 4)
"""Numbers of states of the trellises that the coder has. Besides, 1 state means no trellis."""

_FIRST, _LAST = 0, 255
"""Smallest and largest `starting_level`, which is a byte in the file."""


def starting_level(integers: Tensor, states: int = 1) -> int:
    """Return the level of magnitude at which coding starts, from 0 to 255.

    It is 128 + 16 log2 of the mean magnitude of the first row, rounded.

    Parameters
    ----------
    integers
        Integers, shape (rows, n).
    states
        States of the trellis; 1 (default): no trellis. On the grids of a trellis the index of an
        integer counts, about half its magnitude.
    """
    if not integers.numel():
        return 128
    first = integers[0].abs().to(torch.int32)
    first = first if states == 1 else (first + 1) // 2
    mean = int(first.sum()) / first.numel()
    level = 128 + round(16 * math.log2(mean)) if mean > 0 else _FIRST
    return min(max(level, _FIRST), _LAST)


def analyse(integers: Tensor, outer: Rows, states: int = 1, expected: int = 0) -> _native.Analysis:
    """Return the bits of each row of a matrix of integers, and costs for a search.

    Parameters
    ----------
    integers
        Integers of any data type, shape (rows, n), in coding order, that the trellis can reach.
    outer
        Length of a run, which is the columns of one position: the number of weight rows, or the
        number for each slice.
    states
        States of the trellis; 1 (default): no trellis.
    expected
        If not 0 (default), costs are those that the coder begins with for so many states, else
        those that it has after the integers.

    Returns
    -------
    Analysis
        Native object: its ``bits`` are the bits of each row, and searches take it as the cost of
        each value of each element.
    """
    matrix = integers.to(torch.float32).contiguous().numpy()
    lengths = [outer] if isinstance(outer, int) else list(outer)
    return _native.analyse(matrix, lengths, states, starting_level(integers, states), expected)


def row_bits(integers: Tensor, outer: Rows | None = None, states: int = 1) -> Floats:
    """Return the bits of each row of a (rows, n) tensor of integers that is coded row by row.

    For ``outer`` and ``states`` see `analyse`; by default all columns are one run.
    """
    if not integers.numel():
        return np.zeros(integers.shape[0])
    return np.asarray(analyse(integers, outer or integers.shape[1], states).bits)


def distortion_bound(spectrum: Floats, rate: float) -> float:
    """Return the least distortion of Gaussian tiles at a rate, by reverse water-filling.

    Parameters
    ----------
    spectrum
        Eigenvalues of the tiles' covariance, shape (d,).
    rate
        Bits per weight, 0 or more.

    Returns
    -------
    float
        Mean squared error per weight (Cover and Thomas, Elements of Information Theory, 10.3.3).
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
