# SPDX-License-Identifier: Apache-2.0
"""Matrices of integers that a trellis can reach, for the tests of the coder."""

from __future__ import annotations

import numpy as np
import specified
from numpy.typing import NDArray

Integers = NDArray[np.int16]


def onto_trellis(magnitudes: NDArray[np.float64], states: int, seed: int = 0) -> Integers:
    """Integers near these magnitudes that a trellis reaches, with random signs."""
    trellis = specified.Trellis(states)
    signs = np.random.default_rng(seed).choice([-1, 1], magnitudes.shape)
    out = np.zeros(magnitudes.shape, np.int16)
    for row, wanted in enumerate(magnitudes):
        state = 0
        for column, m in enumerate(wanted):
            if column % specified.RESTART == 0:
                state = 0
            grid = trellis.grid(state)
            index = round(m) if states == 1 else round((m + grid) / 2)
            index = min(index, specified.LARGEST if states == 1 else 2047)
            out[row, column] = trellis.value(grid, index)
            state = trellis.next(state, index)
    return np.asarray(out * signs, np.int16)


def structured(kind: str, rows: int, columns: int, seed: int = 0) -> NDArray[np.float64]:
    """Magnitudes of a few kinds: of one spread, of many, sparse, of extremes."""
    rng = np.random.default_rng(seed)
    values = np.abs(rng.laplace(0, 1, (rows, columns)))
    if kind == "zeros":
        return 0 * values
    if kind == "rows":
        return values * np.exp2(rng.integers(-4, 9, (rows, 1)))
    if kind == "columns":
        return values * np.exp2(rng.integers(-3, 7, columns))
    if kind == "sparse":
        return np.where(rng.random((rows, columns)) < 0.03, 40 * values, 0)
    if kind == "blank rows and columns":
        values[::2], values[:, ::3] = 0, 0
        return 5 * values
    if kind == "huge":
        return np.asarray(rng.choice([0.0, 1.0, 4094.0, 4095.0, 4095.0], (rows, columns)))
    if kind == "jumps":
        return np.where(np.arange(columns) % 50 < 25, 0.0, 4095.0) + 0 * values
    return values * float(kind)


KINDS = ("zeros", "0.2", "1", "30", "900", "rows", "columns", "sparse", "huge", "jumps")
KINDS += ("blank rows and columns",)
