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
STYLES = ("C1o-", "C2s--", "C3^--", "C4v--", "C5D--", "C6x--")

Row = dict[str, Any]


def table(rows: list[Row]) -> str:
    """One line per network, size, epochs, batch and device; one column per method."""
    methods = [m for m in METHODS if any(r["method"] == m for r in rows)]
    lines = [
        "| network | asked | epochs | batch | on | " + " | ".join(map(METHODS.get, methods)) + " |",
        "| --- |" + " ---: |" * 3 + " --- |" + " ---: |" * len(methods),
    ]
    for key in sorted({_run(r) for r in rows}):
        place, asked, epochs, batch, device = key
        cells = [cell([r for r in rows if (_run(r), r["method"]) == (key, m)]) for m in methods]
        heads = [list(NETWORKS.values())[place], f"{asked:g}x", str(epochs), str(batch), device]
        lines.append("| " + " | ".join(heads + cells) + " |")
    return "\n".join(lines)


def headline(rows: list[Row], untrained: list[Row]) -> str:
    """One line per network and size: the best of our runs, and of those of all baselines."""
    lines = [
        "| | dense | asked | tersor, fine-tuned | best baseline |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, title in NETWORKS.items():
        own = [r for r in rows if r["network"] == name]
        dense = next(r for r in untrained if (r["network"], r["method"]) == (name, "dense"))
        for asked in sorted({r["asked"] for r in own}):
            ours, others = (
                _best([r for r in own if (r["method"] == "tersor") == is_ours], asked)
                for is_ours in (True, False)
            )
            best = f"{METHODS[others['method']]}: {cell([others])}" if others else ""
            cells = [title, f"{dense['quality']:.2f} %", f"{asked:g}x", cell([ours]), best]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _run(row: Row) -> tuple[int, float, int, int, str]:
    """What all methods have in common."""
    place = list(NETWORKS).index(row["network"])
    return place, row["asked"], row["epochs"], row["batch"], row["device"]


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
    figure = Figure(figsize=(4.8 * len(names), 4.4), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        ours = [r for r in untrained if r["network"] == name]
        dense = next(r["quality"] for r in ours if r["method"] == "dense")
        before = {r["bytes"]: r["quality"] for r in ours if r["method"] == "tersor"}
        _line(axes, before, "C0*:", "tersor, without training")
        for (method, label), style in zip(METHODS.items(), STYLES, strict=True):
            of_one = [r for r in rows if (r["network"], r["method"]) == (name, method)]
            best = [_best(of_one, asked) for asked in {r["asked"] for r in of_one}]
            _line(axes, {r["bytes"]: r["top1"] for r in best}, style, label)
        axes.axhline(dense, color="gray", linewidth=1)
        axes.set_title(f"{NETWORKS[name]} on CIFAR-10, fp32: {dense:.2f} %", fontsize=11)
        axes.set_xlabel("kB on disk, everything included")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("top-1 accuracy, %")
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    labels = [label for label in ("tersor, without training", *METHODS.values()) if label in lines]
    handles = [lines[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=150)


def _best(rows: list[Row], asked: float) -> Row:
    """The best run at a size; empty if there is none."""
    return max((r for r in rows if r["asked"] == asked), key=lambda r: r["top1"], default={})


def _line(axes: Axes, points: dict[int, float], style: str, label: str) -> None:
    if points:
        sizes = sorted(points)
        axes.plot([s / 1e3 for s in sizes], [points[s] for s in sizes], style, label=label)
