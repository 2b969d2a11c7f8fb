"""The part of docs/results.md about fine-tuning, and its picture; see `results_page`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

NETWORKS = {"resnet20": "ResNet-20", "resnet8": "ResNet-8"}
METHODS = {
    "tersor": "tersor, fine-tuned",
    "vq": "vector quantization, trained codebooks",
    "dkm": "differentiable k-means",
    "lsq2": "2-bit scalar quantization-aware training, coded",
    "lsq1": "1-bit scalar quantization-aware training, coded",
    "svd": "weight SVD",
}
STYLES = ("o-", "s--", "^--", "v--", "D--", "x--")

Row = dict[str, Any]


def table(rows: list[Row]) -> str:
    """One line per network, size and number of epochs; one column per method."""
    methods = [m for m in METHODS if any(r["method"] == m for r in rows)]
    lines = [
        "| network | asked | epochs | " + " | ".join(METHODS[m] for m in methods) + " |",
        "| --- |" + " ---: |" * (2 + len(methods)),
    ]
    keys = {(list(NETWORKS).index(r["network"]), r["asked"], r["epochs"]) for r in rows}
    for place, asked, epochs in sorted(keys):
        network, title = list(NETWORKS.items())[place]
        same = [
            r for r in rows if (r["network"], r["asked"], r["epochs"]) == (network, asked, epochs)
        ]
        cells = [cell([r for r in same if r["method"] == m]) for m in methods]
        lines.append("| " + " | ".join([title, f"{asked:g}x", str(epochs), *cells]) + " |")
    return "\n".join(lines)


def cell(rows: list[Row]) -> str:
    """Mean accuracy over seeds, and the most bytes; of each seed its best learning rate."""
    if not rows:
        return ""
    rows = list({r["seed"]: r for r in sorted(rows, key=lambda r: float(r["top1"]))}.values())
    mean, size = sum(r["top1"] for r in rows) / len(rows), max(r["bytes"] for r in rows)
    return f"{mean:.2f} % at {size:,} bytes" + (f", {len(rows)} seeds" if len(rows) > 1 else "")


def picture(path: Path, rows: list[Row], untrained: list[Row]) -> None:
    """Accuracy against bytes, one panel per network.

    Parameters
    ----------
    path
        Where it is written.
    rows, untrained
        Of `finetuning.py` and of `post_training.py`.
    """
    names = [n for n in NETWORKS if any(r["network"] == n for r in rows)]
    figure = Figure(figsize=(4.8 * len(names), 4), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        ours = [r for r in untrained if r["network"] == name]
        dense = next(r["quality"] for r in ours if r["method"] == "dense")
        before = {r["bytes"]: r["quality"] for r in ours if r["method"] == "tersor"}
        _line(axes, before, "*:", "tersor, without training")
        for (method, label), style in zip(METHODS.items(), STYLES, strict=True):
            of_one = [r for r in rows if (r["network"], r["method"]) == (name, method)]
            _line(axes, _best(of_one), style, label)
        axes.axhline(dense, color="gray", linewidth=1)
        axes.set_title(f"{NETWORKS[name]} on CIFAR-10, fp32: {dense:.2f} %", fontsize=11)
        axes.set_xlabel("kB on disk, everything included")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("top-1 accuracy, %")
    panels[-1].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)


def _best(rows: list[Row]) -> dict[int, float]:
    """Of each size asked for, the run of the most epochs."""
    found: dict[float, Row] = {}
    for row in sorted(rows, key=lambda r: (r["epochs"], r["top1"])):
        found[row["asked"]] = row
    return {row["bytes"]: row["top1"] for row in found.values()}


def _line(axes: Axes, points: dict[int, float], style: str, label: str) -> None:
    if points:
        sizes = sorted(points)
        axes.plot([s / 1e3 for s in sizes], [points[s] for s in sizes], style, label=label)
