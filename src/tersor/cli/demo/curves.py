# SPDX-License-Identifier: Apache-2.0
"""Compare accuracies at equal bytes with k-means and scalar quantization, and draw them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor, nn

from tersor.calibration.normalization import match_normalization
from tersor.cli.demo.digits import Row, Split, accuracy, inputs
from tersor.compression import baselines
from tersor.compression.curve_file import Curve, Point
from tersor.errors import MissingExtraError
from tersor.storage.atomic import replacing
from tersor.storage.checkpoint import open_checkpoint

RATIOS = (20, 30, 40, 60, 80)
"""Compression ratios at which methods are compared. At lower ones all are like the dense model."""

Curves = dict[str, list[Row]]
"""Rows by method, the largest file first."""


def baseline_curves(dense: nn.Module, data: Split, checkpoint: Path) -> Curves:
    """Return bytes and accuracies of other methods, which see the same inputs as ours."""
    source = open_checkpoint(checkpoint)
    targets = [int(source.nbytes / ratio) for ratio in RATIOS]
    return {
        "k-means": list(_theirs(baselines.vector_quantization(source, targets), dense, data)),
        "scalar": list(_theirs(baselines.scalar(source, targets), dense, data)),
    }


def _theirs(
    stored: Iterable[tuple[int, dict[str, Tensor]]], dense: nn.Module, data: Split
) -> Iterator[Row]:
    for size, weights in stored:
        model = copy.deepcopy(dense)
        model.load_state_dict(weights, strict=False)
        match_normalization(model, dense, inputs(data))
        yield Row("", size, accuracy(model, data))


def table(curves: Curves) -> Table:
    """Return a table of the accuracies in percent, one row for each size."""
    result = Table(title="Accuracy in % at equal bytes, nothing trained", box=None)
    result.title_justify = "left"
    for column in ("bytes, at most", *curves):
        result.add_column(column, justify="right")
    for rows in zip(*curves.values(), strict=True):
        most = max(row.nbytes for row in rows)
        result.add_row(str(most), *(f"{row.accuracy:.1f}" for row in rows))
    return result


def as_curve(rows: list[Row], dense: Row) -> Curve:
    """Return measured accuracies for the report."""
    points = [Point(row.nbytes, None, row.accuracy) for row in reversed(rows)]
    return Curve(tuple(points), "accuracy, %", dense.accuracy, dense.nbytes)


def draw(curves: Curves, dense: Row, path: Path) -> None:
    """Draw accuracy against bytes, and write the picture.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("the picture needs: pip install 'tersor[demo]'") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, rows), style in zip(curves.items(), ("o-", "s--", "^--", "*"), strict=True):
        size = 14 if style == "*" else 6
        sizes, hits = [r.nbytes / 1000 for r in rows], [r.accuracy for r in rows]
        axes.plot(sizes, hits, style, markersize=size, label=name)
    axes.axhline(dense.accuracy, color="gray", linewidth=1)
    said = f"as trained, {dense.nbytes / 1000:.0f} kB"
    place: dict[str, Any] = {"ha": "right", "va": "bottom", "xycoords": ("axes fraction", "data")}
    axes.annotate(said, (0.99, dense.accuracy), color="gray", **place)
    axes.set_xscale("log")
    axes.set_xticks(ticks := [5, 7, 10, 14, 20], [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("kB on disk")
    axes.set_ylim(50, 101)
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
