"""The trade-off before the work: quality against size, predicted, and measured at a few sizes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tersor.compression.compressor import Compressor
from tersor.compression.curve_file import Curve, Point
from tersor.compression.quality import Measure
from tersor.errors import BudgetError, InputError
from tersor.units import format_size

LARGEST, SMALLEST = 4, 40
"""Ratios between which the curve goes."""

MEASURED = 4
"""Sizes that are measured."""

_ROOM = 0.02
"""Of the way from the smallest possible size to the largest: files below are as good as empty."""

_NEGLIGIBLE = 1e-12
"""Errors below this share count as this."""


def trace(
    compressor: Compressor,
    source_bytes: int,
    *,
    points: int = 16,
    measure: Measure | None = None,
    metric: str | None = None,
) -> Curve:
    """Quality at sizes from a quarter to a fortieth of the source.

    Parameters
    ----------
    compressor
        Of the source.
    source_bytes
        Size of the source.
    points
        Sizes, at equal ratios to each other; at least 2.
    measure
        Gives the quality of what an archive holds, higher for better, or of the dense model for
        None; by default quality is neither measured nor predicted, but the error is.
    metric
        What the quality is called.

    Raises
    ------
    InputError
        If there are fewer than 2 points, or no weights to factor.
    BudgetError
        If the smallest possible file is not smaller than a quarter of the source.
    """
    sizes = _sizes(compressor, source_bytes, points)
    errors = compressor.predict(sizes)
    if measure is None:
        found = [Point(s, None, None, e) for s, e in zip(sizes, errors, strict=True)]
        return Curve(tuple(found), None, None, source_bytes)
    dense = measure(None)
    places = np.unique(np.linspace(0, points - 1, min(MEASURED, points)).round().astype(int))
    measured = {int(i): measure(compressor.within(sizes[i])) for i in places}
    drops = _interpolated(
        np.log(np.maximum(errors, _NEGLIGIBLE)), {i: dense - value for i, value in measured.items()}
    )
    found = [
        Point(size, float(drops[i]), measured.get(i), errors[i]) for i, size in enumerate(sizes)
    ]
    return Curve(tuple(found), metric, dense, source_bytes)


def _sizes(compressor: Compressor, source_bytes: int, points: int) -> list[int]:
    """Sizes in bytes, rising."""
    if points < 2:
        raise InputError(f"a curve has 2 points at least, got {points}")
    least, high = compressor.least, source_bytes / LARGEST
    if least >= high:
        raise BudgetError(
            f"there is no curve: its largest size would be {format_size(int(high))}, a quarter of "
            f"the input, but the smallest possible file has {format_size(least)}"
        )
    low = max(source_bytes / SMALLEST, least + _ROOM * (high - least))
    return [round(size) for size in np.geomspace(low, high, points)]


def _interpolated(logs: NDArray[np.float64], drops: dict[int, float]) -> NDArray[np.float64]:
    """Drops at all points, from those that were measured, along lines in the root of the error.

    Noise of the evaluation may let the drop rise with the size: the curve does not.
    """
    order = sorted(drops, reverse=True)  # from the largest file, of the least error
    x = np.maximum.accumulate(logs[order] + 1e-9 * np.arange(len(order)))
    y = np.maximum.accumulate([drops[i] for i in order])
    return np.interp(np.exp(logs / 2), np.exp(x / 2), y)
