# SPDX-License-Identifier: Apache-2.0
"""Predict the quality at many file sizes from measurements at a few."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tersor.compression.compressor import Compressor
from tersor.compression.curve_file import Curve, Point
from tersor.compression.quality import Measure
from tersor.errors import BudgetError, InputError
from tersor.units import format_size

LARGEST, SMALLEST = 4, 40
"""Compression ratios at the two ends of the curve."""

MEASURED = 4
"""Number of sizes at which the quality is measured."""

_ROOM = 0.02
"""The curve starts at this share of the way from the smallest possible size to the largest one of
the curve, because smaller files hold almost nothing."""

_NEGLIGIBLE = 1e-12
"""Smaller shares of the error are treated as this one."""


def trace(
    compressor: Compressor,
    source_bytes: int,
    *,
    points: int = 16,
    measure: Measure | None = None,
    metric: str | None = None,
) -> Curve:
    """Return the quality at sizes from a fortieth to a quarter of the source.

    Parameters
    ----------
    compressor
        Compressor of the source.
    source_bytes
        Bytes of the source.
    points
        Number of sizes, which are at equal ratios to each other; at least 2, by default 16.
    measure
        Function that returns the quality of the model in an archive, higher for better models, or
        of the dense model for None. By default quality is neither measured nor predicted, and the
        curve contains predicted errors only.
    metric
        Name of the quality.

    Returns
    -------
    Curve
        Points in ascending order of size. The quality is measured at up to `MEASURED` of them.

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
    """Return the sizes in bytes, in ascending order."""
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
    """Return the drop at all points, interpolated linearly in the square root of the error.

    Noise of the evaluation may make the measured drop rise with the size. The result never does.
    """
    order = sorted(drops, reverse=True)  # from the largest file, which has the least error
    x = np.maximum.accumulate(logs[order] + 1e-9 * np.arange(len(order)))
    y = np.maximum.accumulate([drops[i] for i in order])
    return np.interp(np.exp(logs / 2), np.exp(x / 2), y)
