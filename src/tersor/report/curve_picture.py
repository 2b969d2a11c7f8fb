# SPDX-License-Identifier: Apache-2.0
"""Show the size-accuracy curve in a terminal, and draw it as a picture."""

from __future__ import annotations

import os
from typing import Any

from rich.table import Table

from tersor.compression.curve_file import Curve
from tersor.errors import InputError, MissingExtraError
from tersor.report.curve_chart import predicted, quantity
from tersor.storage.atomic import replacing

FORMATS = ("png", "svg", "pdf")
"""Formats of pictures, which are the endings of their names."""


def render(curve: Curve) -> Table:
    """Return the points of a curve as a table."""
    table = Table(box=None)
    columns = ["bytes", "ratio", "error"]
    if curve.metric is not None:
        columns += ["predicted drop", curve.metric]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for p in curve.points:
        error = "-" if p.error is None else f"{100 * p.error:.2f} %"
        row = [f"{p.nbytes}", f"{curve.dense_bytes / p.nbytes:.1f}", error]
        if curve.metric is not None:
            row += ["-" if v is None else f"{v:.4g}" for v in (p.predicted_drop, p.measured)]
        table.add_row(*row)
    return table


def check_picture(path: str | os.PathLike[str]) -> None:
    """Check that a picture can be written, before any work is done.

    Parameters
    ----------
    path
        Name of the picture.

    Raises
    ------
    InputError
        If the name does not end in one of `FORMATS`.
    MissingExtraError
        If matplotlib is not installed.
    """
    if _format(path) not in FORMATS:
        raise InputError(f"{path} is no picture; give a name that ends in .{', .'.join(FORMATS)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtraError("--plot needs its extra: pip install 'tersor[plot]'") from None


def draw(path: str | os.PathLike[str], curve: Curve) -> None:
    """Write a picture of a curve.

    Predictions are a line and measurements are points. If the metric of the dense model is not
    known, the picture shows the predicted squared error.

    Parameters
    ----------
    path
        Picture to write, in the format that its name ends in.
    curve
        Points to draw.

    Raises
    ------
    InputError, MissingExtraError
        See `check_picture`.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = [p.nbytes / 1000 for p in curve.points]
    if curve.dense is None:
        axes.plot(sizes, [100 * (p.error or 0) for p in curve.points])
        axes.set_yscale("log")
        axes.set_ylabel("predicted squared error, %")
    else:
        _draw_quality(axes, curve, curve.dense)
    axes.set_xscale("log")
    ticks = [sizes[0], (sizes[0] * sizes[-1]) ** 0.5, sizes[-1]]
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("kB on disk")
    axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format=_format(path))


def _draw_quality(axes: Any, curve: Curve, dense: float) -> None:
    line = [(p.nbytes / 1000, v) for p in curve.points if (v := predicted(curve, p)) is not None]
    dots = [(p.nbytes / 1000, p.measured) for p in curve.points if p.measured is not None]
    axes.plot(*zip(*line, strict=True), label="predicted")
    axes.plot(*zip(*dots, strict=True), "o", label="measured")
    axes.axhline(dense, color="gray", linewidth=1, linestyle="--", label="dense")
    axes.set_ylabel(quantity(curve))
    axes.legend(loc="lower right")


def _format(path: str | os.PathLike[str]) -> str:
    return os.fspath(path).rpartition(".")[2].lower()
