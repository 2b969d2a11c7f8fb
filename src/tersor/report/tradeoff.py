"""Build the section with the size-accuracy curve."""

from __future__ import annotations

from tersor.compression.curve_file import Curve
from tersor.report.blocks import details, number, section, table
from tersor.report.curve_chart import draw, has_metric, quantity
from tersor.report.facts import Facts
from tersor.report.markup import Markup, tag
from tersor.report.words import size

_OPEN_POINTS = 8
"""Largest number of points whose table is not folded."""


def tradeoff(curve: Curve, facts: Facts) -> Markup:
    """Return the section with a curve, on which the size of the file is marked."""
    what = quantity(curve)
    dense = "" if curve.dense is None else f" Dashed: the dense model, {curve.dense:g}"
    dense += f" at {size(curve.dense_bytes)}." if dense else ""
    points = _points(curve)
    if len(curve.points) > _OPEN_POINTS:
        points = details(f"{len(curve.points)} points", points)
    kinds = "Line: predicted. Points: measured." if has_metric(curve) else "As predicted."
    return section(
        "Size and accuracy" if has_metric(curve) else "Size and error",
        f"{what[0].upper()}{what[1:]} against size. {kinds}{dense}",
        tag("div", draw(curve, facts.report.nbytes), points, class_="columns"),
    )


def _points(curve: Curve) -> Markup:
    shown = {"Predicted loss": "predicted_drop", "Measured": "measured"}
    if not has_metric(curve):
        shown = {"Squared error, share": "error"}
    rows = [
        [
            tag("th", f"{p.nbytes:,}", scope="row", class_="number"),
            *(number(_value(getattr(p, field))) for field in shown.values()),
        ]
        for p in curve.points
    ]
    columns = dict.fromkeys(("Bytes", *shown), "number")
    return table("Points of the curve", columns, rows)


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
