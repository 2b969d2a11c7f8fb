# SPDX-License-Identifier: Apache-2.0
"""Predict the bytes and the error of a weight at a step size by formulas and measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tersor.factorization.rate_aware import LAGRANGIAN
from tersor.factorization.tiles import tile_of_binary
from tersor.factorization.weights import BINARY
from tersor.tiling import Tiling

_LEVEL = LAGRANGIAN / (2 * math.log(2))
"""Error that an axis keeps at λ, in units of the step size squared."""

_FLOOR = 8.0
"""Bytes added to sizes before their ratio is taken, so that all sizes near 0 count as equal."""

_BISECTIONS, _WIDTH, _FIRST_WIDTH = 90, 1e-7, 0.02
"""Steps of sizes are bisected until their logarithms differ by less than `_WIDTH`, from a bracket
that is first `_FIRST_WIDTH` wide."""


_NEGLIGIBLE = 1e-12
"""Smallest share of the weight's energy that is distinguished from no error."""


@dataclass
class _Corrected:
    """A formula of the step size, times an interpolated ratio of measured to predicted values.

    Parameters
    ----------
    formula
        Function of the step size that predicts the value.
    floor
        Number that is added to values before their ratio is taken.
    """

    formula: Callable[[float], float]
    floor: float
    _points: dict[float, float] = field(default_factory=dict)
    _provisional: bool = True

    def learn(self, step_size: float, measured: float, provisional: bool = False) -> None:
        if self._provisional:
            self._points.clear()
        self._provisional = provisional
        expected = self.formula(step_size)
        self._points[math.log(step_size)] = math.log(
            (measured + self.floor) / (expected + self.floor)
        )

    def __call__(self, step_size: float) -> float:
        ratio = math.exp(_interpolate(math.log(step_size), sorted(self._points.items())))
        return max(0.0, ratio * (self.formula(step_size) + self.floor) - self.floor)


def _interpolate(x: float, points: list[tuple[float, float]]) -> float:
    """Interpolate linearly between points, and extrapolate with a limited slope."""
    if len(points) < 2:
        return points[0][1] if points else 0.0
    right = min(max(sum(known < x for known, _ in points), 1), len(points) - 1)
    (a, low), (b, high) = points[right - 1], points[right]
    slope = (high - low) / (b - a)
    if x < a or x > b:
        slope = min(max(slope, -_STEEPEST), _STEEPEST)
    return high + slope * (x - b) if x > b else low + slope * (x - a)


class SizeModel:
    """Bytes and error of a weight's factors as functions of the step size.

    At high rates an axis of variance v takes ``log2(v / level) / 2`` bits. The level is the error
    that the axis keeps, and is proportional to the step size squared (reverse water-filling).
    ``log2(1 + v / level) / 2`` bits and an error of ``v level / (v + level)`` also describe low
    rates, at which weights that are not Gaussian still take some bits. The ratio of measured values
    to these formulas is interpolated between the step sizes at which values were measured.

    Parameters
    ----------
    spectrum
        Variances of the tiles' axes, (d,), in units of the weight squared.
    tiles
        Number of tiles.

    Attributes
    ----------
    said
        Bytes that were expected at the last step size whose bytes were measured, before that.
    tile
        Tile size.
    """

    def __init__(self, spectrum: NDArray[np.float64], tiles: float) -> None:
        self._spectrum, self._tiles = spectrum, tiles
        energy = tiles * float(spectrum.sum())
        self._size = _Corrected(self._bytes, _FLOOR)
        self._distortion = _Corrected(self._error, max(_NEGLIGIBLE * energy, 1e-300))
        self.said, self.tile = 0.0, len(spectrum)

    def learn(
        self,
        step_size: float,
        nbytes: float,
        error: float | None = None,
        *,
        provisional: bool = False,
    ) -> None:
        """Record measured bytes, and an error if it was measured.

        Parameters
        ----------
        step_size
            Step size of the measurement.
        nbytes
            Measured bytes.
        error
            Measured squared error, or None.
        provisional
            Whether the values are dropped when the next ones are recorded; by default not.
        """
        if not provisional:
            self.said = self.bytes(step_size)
        self._size.learn(step_size, nbytes, provisional)
        if error is not None:
            self._distortion.learn(step_size, error, provisional)

    def bytes(self, step_size: float) -> float:
        """Return the expected bytes at a step size."""
        return self._size(step_size)

    def error(self, step_size: float) -> float:
        """Return the expected squared error at a step size."""
        return self._distortion(step_size)

    def _bytes(self, step_size: float) -> float:
        level = _LEVEL * step_size**2
        return self._tiles * float(np.log1p(self._spectrum / level).sum()) / _SIXTEEN

    def _error(self, step_size: float) -> float:
        level = _LEVEL * step_size**2
        return self._tiles * float((self._spectrum / (1 + self._spectrum / level)).sum())


class SizeOfBinary(SizeModel):
    """Bytes and error of binary sums, whose bytes are known exactly.

    Parameters
    ----------
    shape
        Shape of the weight.
    variance
        Variance of its elements, in units of the weight squared.
    """

    def __init__(self, shape: tuple[int, ...], variance: float) -> None:
        super().__init__(np.array([variance]), math.prod(shape))
        self._shape, self._variance = shape, variance

    def learn(
        self,
        step_size: float,
        nbytes: float,
        error: float | None = None,
        *,
        provisional: bool = False,
    ) -> None:
        """Record a measured error; the bytes need no measurement."""
        self.said = self.bytes(step_size)
        if error is not None:
            self._distortion.learn(step_size, error, provisional)

    def bytes(self, step_size: float) -> float:
        """Return the bytes at a step size: 1 bit per sign and 8 bits per codebook element."""
        tile = tile_of_binary(self._shape, self._variance / step_size**2)
        return BINARY * (Tiling(self._shape, tile).count / 8 + tile)


_STEEPEST = 0.7  # limit of the slope, so that sizes still fall as the step size grows
_SIXTEEN = 16 * math.log(2)  # divisor that converts half of a natural logarithm to bytes


def step_size_for(sizes: Iterable[Callable[[float], float]], total: float, around: float) -> float:
    """Return the step size at which the sizes of all weights add up to a total.

    Parameters
    ----------
    sizes
        Functions that return the bytes of each weight at a step size. The bytes fall as it grows.
    total
        Total bytes.
    around
        Step size of about the right order. The result is between 2**-60 and 2**60 times this.

    Returns
    -------
    float
        Step size in the units of ``around``.
    """
    known = list(sizes)

    def excess(position: float) -> float:
        return sum(size(math.exp(position)) for size in known) - total

    middle = math.log(around)
    farthest = 60 * math.log(2)
    low = high = middle
    width = _FIRST_WIDTH
    if excess(middle) > 0:
        while high < middle + farthest and excess(high) > 0:
            low, high, width = high, min(high + width, middle + farthest), 2 * width
    else:
        while low > middle - farthest and excess(low) <= 0:
            low, high, width = max(low - width, middle - farthest), low, 2 * width
    for _ in range(_BISECTIONS):
        if high - low < _WIDTH:
            break
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.exp(high)
