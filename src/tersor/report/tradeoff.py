# SPDX-License-Identifier: Apache-2.0
"""Compute what the section with the size-accuracy curve shows."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from tersor.compression.curve_file import Curve
from tersor.report.curve_chart import draw, has_metric, quantity
from tersor.report.facts import Facts
from tersor.report.words import size

_OPEN_POINTS = 8
"""Largest number of points whose table is not folded."""


class Tradeoff(NamedTuple):
    """Content of the section, as the template shows it.

    Parameters
    ----------
    title, explanation
        Texts above the chart.
    chart
        Image of the curve, on which the size of the file is marked.
    summary
        Title of the folded table; empty if the table is not folded.
    columns
        CSS class of each column, by its title.
    rows
        Bytes and values of each point.
    """

    title: str
    explanation: str
    chart: Markup
    summary: str
    columns: dict[str, str]
    rows: list[tuple[str, list[str]]]


def tradeoff(curve: Curve, facts: Facts) -> Tradeoff:
    """Return the section with a curve."""
    what = quantity(curve)
    dense = "" if curve.dense is None else f" Dashed: the dense model, {curve.dense:g}"
    dense += f" at {size(curve.dense_bytes)}." if dense else ""
    kinds = "Line: predicted. Points: measured." if has_metric(curve) else "As predicted."
    shown = {"Predicted loss": "predicted_drop", "Measured": "measured"}
    if not has_metric(curve):
        shown = {"Squared error, share": "error"}
    rows = [
        (f"{p.nbytes:,}", [_value(getattr(p, field)) for field in shown.values()])
        for p in curve.points
    ]
    return Tradeoff(
        "Size and accuracy" if has_metric(curve) else "Size and error",
        f"{what[0].upper()}{what[1:]} against size. {kinds}{dense}",
        draw(curve, facts.report.nbytes),
        f"{len(rows)} points" if len(rows) > _OPEN_POINTS else "",
        dict.fromkeys(("Bytes", *shown), "number"),
        rows,
    )


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
