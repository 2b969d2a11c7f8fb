# SPDX-License-Identifier: Apache-2.0
"""Draw the size-accuracy curve as inline SVG, with the size of the file marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from tersor.compression.curve_file import Curve, Point
from tersor.report import words
from tersor.report.markup import tag
from tersor.report.svg import chart, round_numbers, text
from tersor.units import format_size

_WIDTH, _HEIGHT = 340, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 330, 22, 182

Scale = Callable[[float], float]


def predicted(curve: Curve, point: Point) -> float | None:
    """Return the predicted value of a point; None if there is none.

    It is the metric if that of the dense model is known, or else the change of the metric. If no
    metric is known, it is the squared error in percent.
    """
    if not has_metric(curve):
        return None if point.error is None else 100 * point.error
    if point.predicted_drop is None:
        return None
    return (curve.dense or 0.0) - point.predicted_drop


def measured(curve: Curve, point: Point) -> float | None:
    """Return the measured value of a point; None if the predictions are on another scale."""
    return None if curve.dense is None and _has_prediction(curve) else point.measured


def _has_prediction(curve: Curve) -> bool:
    return any(p.predicted_drop is not None for p in curve.points)


def has_metric(curve: Curve) -> bool:
    """Return whether anything besides the error of the weights is known."""
    return _has_prediction(curve) or any(p.measured is not None for p in curve.points)


def quantity(curve: Curve) -> str:
    """Return the title of the vertical axis."""
    if not has_metric(curve):
        return "Squared error in % of that of zeros"
    name = words.name(curve.metric or "the metric")
    return f"Change in {name}" if curve.dense is None and _has_prediction(curve) else name


def draw(curve: Curve, nbytes: int) -> Markup:
    """Return a chart: predictions as a line, measurements as points, the file as a vertical line.

    Parameters
    ----------
    curve
        Points to draw.
    nbytes
        Size of the file.
    """
    line = [(p.nbytes, v) for p in curve.points if (v := predicted(curve, p)) is not None]
    dots = [(p.nbytes, v) for p in curve.points if (v := measured(curve, p)) is not None]
    values = [v for _, v in line + dots] + ([] if curve.dense is None else [curve.dense])
    ticks = round_numbers(min(values, default=0.0), max(values, default=1.0))
    sizes = [nbytes, *(p.nbytes for p in curve.points)]
    x = _scale(math.log(min(sizes)), math.log(max(sizes)), _LEFT + 8, _RIGHT - 8)
    y = _scale(ticks[0], ticks[-1], _BOTTOM, _TOP + 8)
    at = [(x(math.log(size)), y(value)) for size, value in line]
    titles = [f"{format_size(size)}: {value:.4g}, predicted" for size, value in line]
    label = f"{quantity(curve)} against the size of the file, which has {format_size(nbytes)}"
    return chart(
        label,
        *_axes(ticks, y, (min(sizes), max(sizes)), x),
        *_dense(curve, y),
        tag("path", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in at), class_="line")
        if at
        else Markup(),
        *(_point(*place, title, "spot") for place, title in zip(at, titles, strict=True)),
        *(
            _point(
                x(math.log(size)), y(value), f"{format_size(size)}: {value:.4g}, measured", "dot"
            )
            for size, value in dots
        ),
        *_here(x(math.log(nbytes)), nbytes),
        height=_HEIGHT,
        width=_WIDTH,
    )


def _point(x: float, y: float, title: str, kind: str) -> Markup:
    """Return a point, whose title the browser shows when the mouse is over it."""
    r = 3.5 if kind == "dot" else 6
    return tag("circle", tag("title", title), cx=f"{x:.1f}", cy=f"{y:.1f}", r=r, class_=kind)


def _here(x: float, nbytes: int) -> list[Markup]:
    anchor = "start" if x < (_LEFT + _RIGHT) / 3 else "end" if x > 2 * _RIGHT / 3 else "middle"
    return [
        tag("path", d=f"M{x:.1f} {_TOP - 6}V{_BOTTOM}", class_="mark"),
        text(x, _TOP - 10, f"this file: {format_size(nbytes)}", anchor),
    ]


def _dense(curve: Curve, y: Scale) -> list[Markup]:
    if curve.dense is None:
        return []
    return [tag("path", d=f"M{_LEFT} {y(curve.dense):.1f}H{_RIGHT}", class_="dense")]


def _axes(ticks: Sequence[float], y: Scale, sizes: tuple[int, int], x: Scale) -> list[Markup]:
    parts = []
    for tick in ticks:
        parts.append(tag("path", d=f"M{_LEFT} {y(tick):.1f}H{_RIGHT}", class_="grid"))
        parts.append(text(_LEFT - 6, y(tick) + 4, f"{tick:g}", "end"))
    for size in _sizes(*sizes):
        parts.append(text(x(math.log(size)), _BOTTOM + 16, _short(size), "middle"))
    parts.append(tag("path", d=f"M{_LEFT} {_BOTTOM}H{_RIGHT}", class_="axis"))
    parts.append(text((_LEFT + _RIGHT) / 2, _BOTTOM + 33, "size of the file", "middle"))
    return parts


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """Return the linear map from [low, high] to [start, end], or to their middle if high <= low."""
    if high <= low:
        return lambda _: (start + end) / 2
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _short(nbytes: int) -> str:
    """Return a round size as text, without zeros after the point."""
    return format_size(nbytes).replace(".00 ", " ").replace(".0 ", " ")


def _sizes(low: int, high: int) -> list[int]:
    """Return up to four sizes between two, each 1, 2 or 5 times a power of ten, or else the two."""
    powers = range(len(str(low)) - 1, len(str(high)))
    fine = [m * 10**p for p in powers for m in (1, 2, 5) if low <= m * 10**p <= high]
    shown = fine[:: -(-len(fine) // 4)] if fine else []
    return shown if len(shown) > 1 else sorted({low, high})
