# SPDX-License-Identifier: Apache-2.0
"""Read and write the curve of quality against size as a JSON file."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.errors import InputError
from tersor.storage.atomic import replacing


@dataclass(frozen=True)
class Point:
    """One size of the file, and the quality at this size.

    Parameters
    ----------
    nbytes
        Bytes of the file.
    predicted_drop
        Predicted drop of the metric from the dense model's; None if unknown.
    measured
        The metric, if it was measured, else None.
    error
        Predicted squared error of the weights, or, with calibration, of their outputs, as a share
        of the error of zeros; None if unknown.
    """

    nbytes: int
    predicted_drop: float | None
    measured: float | None
    error: float | None = None


@dataclass(frozen=True)
class Curve:
    """Quality against size.

    Parameters
    ----------
    points
        Points in ascending order of size.
    metric
        Name of the metric; None if there is none.
    dense
        The metric of the dense model; None if unknown.
    dense_bytes
        Bytes of the dense model.
    """

    points: tuple[Point, ...]
    metric: str | None
    dense: float | None
    dense_bytes: int


def read(path: str | os.PathLike[str]) -> Curve:
    """Read the JSON file that ``tersor curve`` wrote.

    Parameters
    ----------
    path
        Path of the file.

    Returns
    -------
    Curve
        The curve, with its points in ascending order of size.

    Raises
    ------
    InputError
        If the file is missing, or has other contents.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"no such file: {file}; give the JSON file that `tersor curve` wrote with --curve"
        )
    try:
        return _curve(json.loads(file.read_bytes()))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{file} is not what `tersor curve` writes ({type(error).__name__}: {error}); give its "
            "JSON file"
        ) from None


def write(path: str | os.PathLike[str], curve: Curve) -> None:
    """Write a curve to a JSON file, atomically.

    Parameters
    ----------
    path
        Path of the file.
    curve
        The curve to write.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(to_json(curve), indent=2) + "\n")


def to_json(curve: Curve) -> dict[str, Any]:
    """Return a curve as plain data for JSON."""
    points = [
        {
            "bytes": p.nbytes,
            "ratio": curve.dense_bytes / p.nbytes,
            "error": p.error,
            "predicted_drop": p.predicted_drop,
            "measured": p.measured,
        }
        for p in curve.points
    ]
    return {
        "points": points,
        "metric": curve.metric,
        "dense": curve.dense,
        "dense_bytes": curve.dense_bytes,
    }


def _curve(data: dict[str, Any]) -> Curve:
    points = [
        Point(
            _size(p["bytes"]),
            _number(p["predicted_drop"]),
            _number(p["measured"]),
            _number(p.get("error")),
        )
        for p in data["points"]
    ]
    if not points:
        raise ValueError("it has no points")
    points.sort(key=lambda p: p.nbytes)
    metric = data["metric"]
    if not isinstance(metric, str | None):
        raise TypeError("the metric must be a name or null")
    return Curve(tuple(points), metric, _number(data["dense"]), _size(data["dense_bytes"]))


def _size(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**63:
        raise ValueError(f"{value!r} is not a size in bytes")
    return value


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) < math.inf:
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
