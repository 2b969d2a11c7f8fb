"""Bytes and error of a weight at a step: formulas, corrected by what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tersor.factorization.rate_aware import PRICE
from tersor.factorization.tiles import tile_of_signs
from tersor.factorization.weights import SIGNS
from tersor.tiling import Tiling

_LEVEL = PRICE / (2 * math.log(2))
"""Error that an axis keeps, in units of the step squared, at the price of a bit."""

_FLOOR = 8.0
"""Bytes that are added to sizes before their ratio is taken: those near 0 are as good as alike."""

_BISECTIONS = 90


_NEGLIGIBLE = 1e-12
"""Errors are told apart down to this share of the weight's energy."""


@dataclass
class _Corrected:
    """A formula of the step, times the ratio of what was measured to it, which is interpolated."""

    formula: Callable[[float], float]
    floor: float
    _points: dict[float, float] = field(default_factory=dict)
    _provisional: bool = True

    def learn(self, step: float, measured: float, provisional: bool = False) -> None:
        if self._provisional:
            self._points.clear()
        self._provisional = provisional
        expected = self.formula(step)
        self._points[math.log(step)] = math.log((measured + self.floor) / (expected + self.floor))

    def __call__(self, step: float) -> float:
        ratio = math.exp(_interpolate(math.log(step), sorted(self._points.items())))
        return max(0.0, ratio * (self.formula(step) + self.floor) - self.floor)


def _interpolate(x: float, points: list[tuple[float, float]]) -> float:
    """Between and beyond points along straight lines, which beyond them are not too steep."""
    if len(points) < 2:
        return points[0][1] if points else 0.0
    right = min(max(sum(known < x for known, _ in points), 1), len(points) - 1)
    (a, low), (b, high) = points[right - 1], points[right]
    slope = (high - low) / (b - a)
    if x < a or x > b:
        slope = min(max(slope, -_STEEPEST), _STEEPEST)
    return high + slope * (x - b) if x > b else low + slope * (x - a)


class SizeModel:
    """Bytes and error of a weight's factors as functions of the step.

    At high rates an axis of variance v takes ``log2(v / level) / 2`` bits, where the level, the
    error that it keeps, is in proportion to the step squared (reverse water-filling);
    ``log2(1 + v / level) / 2`` bits and an error of ``v level / (v + level)`` also tell low rates,
    at which weights that are not Gaussian still take some. The ratio of what was measured to this
    is interpolated between the steps at which it was measured.

    Parameters
    ----------
    spectrum
        Variances of the tiles' axes, (d,), in units of the weight squared.
    tiles
        Number of tiles.
    """

    def __init__(self, spectrum: NDArray[np.float64], tiles: float) -> None:
        self._spectrum, self._tiles = spectrum, tiles
        energy = tiles * float(spectrum.sum())
        self._size = _Corrected(self._bytes, _FLOOR)
        self._distortion = _Corrected(self._error, max(_NEGLIGIBLE * energy, 1e-300))

    def learn(
        self,
        step: float,
        nbytes: float,
        error: float | None = None,
        *,
        provisional: bool = False,
    ) -> None:
        """Take in a size, and perhaps an error, that was measured.

        Provisional ones hold for as long as there are no others.
        """
        self._size.learn(step, nbytes, provisional)
        if error is not None:
            self._distortion.learn(step, error, provisional)

    def bytes(self, step: float) -> float:
        """Bytes at a step."""
        return self._size(step)

    def error(self, step: float) -> float:
        """Squared error at a step."""
        return self._distortion(step)

    def _bytes(self, step: float) -> float:
        level = _LEVEL * step**2
        return self._tiles * float(np.log1p(self._spectrum / level).sum()) / _SIXTEEN

    def _error(self, step: float) -> float:
        level = _LEVEL * step**2
        return self._tiles * float((self._spectrum / (1 + self._spectrum / level)).sum())


class SizeOfSigns(SizeModel):
    """The same of sums of signs, whose bytes are known.

    Parameters
    ----------
    shape
        Of the weight.
    variance
        Of its elements, in units of the weight squared.
    """

    def __init__(self, shape: tuple[int, ...], variance: float) -> None:
        super().__init__(np.array([variance]), math.prod(shape))
        self._shape, self._variance = shape, variance

    def learn(
        self,
        step: float,
        nbytes: float,
        error: float | None = None,
        *,
        provisional: bool = False,
    ) -> None:
        """Take in an error that was measured."""
        if error is not None:
            self._distortion.learn(step, error, provisional)

    def bytes(self, step: float) -> float:
        """Bytes at a step: a bit for each sign, and 8 for each element of the codebook."""
        tile = tile_of_signs(self._shape, self._variance / step**2)
        return SIGNS * (Tiling(self._shape, tile).count / 8 + tile)


_STEEPEST = 0.7  # sizes still fall as the step grows
_SIXTEEN = 16 * math.log(2)  # half of a natural logarithm -> bytes


def step_of_size(sizes: Iterable[Callable[[float], float]], total: float, around: float) -> float:
    """Step at which sizes, which fall as it grows, add up to a total.

    Parameters
    ----------
    sizes
        Bytes of each weight at a step.
    total
        Bytes in all.
    around
        A step of about the right order: the answer is within 2**-60 and 2**60 of it.
    """
    known = list(sizes)
    low, high = math.log(around) - 60 * math.log(2), math.log(around) + 60 * math.log(2)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if sum(size(math.exp(middle)) for size in known) > total:
            low = middle
        else:
            high = middle
    return math.exp(high)
