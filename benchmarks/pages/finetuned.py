# SPDX-License-Identifier: Apache-2.0
"""The part of docs/results.md about fine-tuning, and its picture; see `results`."""

from __future__ import annotations

import math
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
Task = tuple[str, bool]
"""A network, and whether others taught it than its own dense one."""


def table(rows: list[Row]) -> str:
    """One line per network, teacher, size, epochs, batch and device; one column per method."""
    methods = [m for m in METHODS if any(r["method"] == m for r in rows)]
    lines = [
        "| network | taught by | asked | epochs | batch | on | "
        + " | ".join(map(METHODS.get, methods))
        + " |",
        "| --- | --- |" + " ---: |" * 3 + " --- |" + " ---: |" * len(methods),
    ]
    for task in tasks(rows):
        own = [r for r in rows if _task(r) == task]
        for run in sorted({_run(r) for r in own}):
            cells = [cell([r for r in own if (_run(r), r["method"]) == (run, m)]) for m in methods]
            teacher, asked, before, epochs, batch, device = run
            heads = [NETWORKS[task[0]], names(teacher), f"{asked:g}x", _epochs(before, epochs)]
            heads += [str(batch), device]
            lines.append("| " + " | ".join(heads + cells) + " |")
    return "\n".join(lines)


def headline(rows: list[Row], untrained: list[Row]) -> str:
    """One line per task and size: the best of our runs, and of those of all baselines."""
    lines = [
        "| | dense | asked | tersor, fine-tuned | best baseline |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for task in tasks(rows):
        own = [r for r in rows if _task(r) == task]
        dense = _dense(untrained, task[0])
        for asked in sorted({r["asked"] for r in own if r["method"] == "tersor"}):
            ours, others = (
                _best([r for r in own if (r["method"] == "tersor") == is_ours], asked)
                for is_ours in (True, False)
            )
            best = f"{METHODS[others['method']]}: {_with_epochs(others)}" if others else ""
            cells = [title(task), f"{dense:.2f} %", f"{asked:g}x", _with_epochs(ours), best]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tasks(rows: list[Row]) -> list[Task]:
    """Those that there are rows of."""
    order = list(NETWORKS)
    return sorted({_task(r) for r in rows}, key=lambda task: (order.index(task[0]), task[1]))


def title(task: Task) -> str:
    """A task in words."""
    return NETWORKS[task[0]] + (", other teachers" if task[1] else "")


def _task(row: Row) -> Task:
    return row["network"], row["teacher"] != row["network"]


def names(teacher: str) -> str:
    """Networks that taught together."""
    return " and ".join(NETWORKS[name] for name in teacher.split("+"))


def _dense(untrained: list[Row], network: str) -> float:
    """Accuracy of the dense network."""
    wanted = network, "dense"
    return next(r["quality"] for r in untrained if (r["network"], r["method"]) == wanted)


def _run(row: Row) -> tuple[str, float, int, int, int, str]:
    """What all methods of a line have in common, besides the network."""
    taught = row["teacher"], row["asked"], row["before"]
    return *taught, row["epochs"], row["batch"], row["device"]


def _epochs(before: int, epochs: int) -> str:
    """How many; before those that the network learnt from its own dense one, if it did."""
    return f"{before} + {epochs}" if before else str(epochs)


def cell(rows: list[Row]) -> str:
    """Mean accuracy over seeds, and the most bytes; of each seed its best learning rate."""
    if not rows:
        return ""
    rows = list({r["seed"]: r for r in sorted(rows, key=lambda r: float(r["top1"]))}.values())
    mean, size = sum(r["top1"] for r in rows) / len(rows), max(r["bytes"] for r in rows)
    return f"{mean:.2f} % at {size:,} bytes" + (f", {len(rows)} seeds" if len(rows) > 1 else "")


def _with_epochs(row: Row) -> str:
    taught = f", {names(row['teacher'])}" if _task(row)[1] else ""
    return f"{cell([row])}, {_epochs(row['before'], row['epochs'])} epochs{taught}"


def picture(path: Path, rows: list[Row], untrained: list[Row]) -> None:
    """Accuracy against bytes, one panel per task; hollow: fewer epochs than ours has at that size.

    Parameters
    ----------
    path
        Where it is written.
    rows, untrained
        Of `finetuning.py` and of `post_training.py`.
    """
    shown = tasks(rows)
    height = math.ceil(len(shown) / 2)
    figure = Figure(figsize=(10.5, 4.2 * height), layout="constrained")
    panels = figure.subplots(height, 2, squeeze=False, sharey="row").ravel()
    for axes in panels[len(shown) :]:
        axes.remove()
    for axes, task in zip(panels, shown, strict=False):
        ours = [r for r in untrained if (r["network"], r["method"]) == (task[0], "tersor")]
        dense = _dense(untrained, task[0])
        _line(axes, {r["bytes"]: r["quality"] for r in ours}, "C0*:", "tersor, without training")
        for (method, label), style in zip(METHODS.items(), STYLES, strict=True):
            for is_equal in (True, False):
                best = [r for r in _shown(rows, task, method) if _is_equal(r, rows) == is_equal]
                points = {r["bytes"]: r["top1"] for r in best}
                form, fill = (style, "full") if is_equal else (style[:3], "none")
                _line(axes, points, form, label, fill)
        axes.axhline(dense, color="gray", linewidth=1)
        axes.set_title(f"{title(task)}\nCIFAR-10, fp32: {dense:.2f} %", fontsize=11)
        axes.set_xlabel("kB on disk, everything included")
        axes.grid(alpha=0.3)
    for axes in panels[::2]:
        axes.set_ylabel("top-1 accuracy, %")
    drawn = [line for axes in figure.axes for line in axes.get_lines()]
    lines = {line.get_label(): line for line in reversed(drawn)}  # full ones are drawn first
    labels = [label for label in ("tersor, without training", *METHODS.values()) if label in lines]
    handles = [lines[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=150)


def _shown(rows: list[Row], task: Task, method: str) -> list[Row]:
    """The best run of a method at each size."""
    own = [r for r in rows if (_task(r), r["method"]) == (task, method)]
    return [_best(own, asked) for asked in {r["asked"] for r in own}]


def _is_equal(row: Row, rows: list[Row]) -> bool:
    """Whether a run has as many epochs as our best at that size."""
    ours = [r for r in rows if (_task(r), r["method"]) == (_task(row), "tersor")]
    best = _best(ours, row["asked"])
    return not best or row["before"] + row["epochs"] >= best["before"] + best["epochs"]


def _best(rows: list[Row], asked: float) -> Row:
    """The best run at a size; empty if there is none."""
    return max((r for r in rows if r["asked"] == asked), key=lambda r: r["top1"], default={})


def _line(axes: Axes, points: dict[int, float], style: str, label: str, fill: str = "full") -> None:
    if points:
        sizes, values = sorted(points), [points[size] for size in sorted(points)]
        axes.plot([s / 1e3 for s in sizes], values, style, label=label, fillstyle=fill)
