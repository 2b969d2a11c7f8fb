"""How many bytes a weight will take at a step: a formula, corrected by what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tersor.factorization.rate_aware import PRICE

_LEVEL = PRICE / (2 * math.log(2))
"""Error that an axis keeps, in units of the step squared, at the price of a bit."""

_FLOOR = 8.0
"""Bytes that are added to sizes before their ratio is taken: those near 0 are as good as alike."""

_BISECTIONS = 90


@dataclass
class SizeModel:
    """Bytes of a weight's factors as a function of the step.

    At high rates an axis of variance v takes ``log2(v / level) / 2`` bits, where the level is in
    proportion to the step squared (reverse water-filling); ``log2(1 + v / level) / 2`` also tells
    low rates, at which weights that are not Gaussian still take some. The ratio of measured sizes
    to this is interpolated between the steps at which they were measured.

    Parameters
    ----------
    spectrum
        Variances of the tiles' axes, (d,), in units of the weight squared.
    tiles
        Number of tiles.
    """

    spectrum: NDArray[np.float64]
    tiles: float
    _points: dict[float, float] = field(default_factory=dict, repr=False)
    _provisional: bool = field(default=True, repr=False)

    def learn(self, step: float, nbytes: float, *, provisional: bool = False) -> None:
        """Take in a size that was measured, or for as long as none is, a provisional one."""
        if self._provisional:
            self._points.clear()
        self._provisional = provisional
        self._points[math.log(step)] = math.log((nbytes + _FLOOR) / (self._formula(step) + _FLOOR))

    def bytes(self, step: float) -> float:
        """Bytes at a step."""
        ratio = math.exp(_interpolate(math.log(step), sorted(self._points.items())))
        return max(0.0, ratio * (self._formula(step) + _FLOOR) - _FLOOR)

    def _formula(self, step: float) -> float:
        return self.tiles * float(np.log1p(self.spectrum / (_LEVEL * step**2)).sum()) / _SIXTEEN


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
