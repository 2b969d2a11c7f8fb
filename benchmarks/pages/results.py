# SPDX-License-Identifier: Apache-2.0
"""Write docs/results.md, its pictures, and tables in other pages, from the JSON in results/.

python -m benchmarks.pages.results
"""

from __future__ import annotations

import inspect
from typing import Any

from matplotlib.figure import Figure

from benchmarks.lib import record
from benchmarks.lib.places import DOCS, RESULTS, ROOT
from benchmarks.lib.template import fill
from benchmarks.pages import finetuned, inference, tables

PICTURE = DOCS / "resnet20_cifar10.png"
TRAINED_PICTURE = DOCS / "finetuning.png"
START, END = "<!-- results: made by benchmarks/pages/results.py -->", "<!-- end of results -->"
FRONTS = ROOT / "README.md", DOCS / "index.md"
EFFORT, LOW_RANK = DOCS / "how-to" / "effort.md", DOCS / "low-rank.md"
Row = dict[str, Any]


def picture(rows: list[Row], one_call: list[Row]) -> None:
    """Accuracy against bytes of ResNet-20: one call of ours, and what was measured beside it."""
    lines = {
        "tersor": [(r["bytes"], r["quality"]) for r in tables.one_calls(one_call)],
        "tersor, without data": points(rows, "tersor"),
        "rounded weights (scalar quantization)": points(rows, "scalar"),
        "k-means vector quantization": points(rows, "vector_quantization"),
    }
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (label, line), style in zip(lines.items(), ("o-", "D-", "^--", "s--"), strict=True):
        axes.plot([size / 1e3 for size, _ in line], [top1 for _, top1 in line], style, label=label)
    dense = next(r for r in rows if r["method"] == "fp32")
    axes.axhline(dense["top1"], color="gray", linewidth=1)
    axes.annotate(
        f"as trained, {dense['bytes'] / 1e3:,.0f} kB: {dense['top1']:.2f} %",
        (min(size for line in lines.values() for size, _ in line) / 1e3, dense["top1"] + 0.3),
        color="gray",
    )
    axes.set_xlabel("kB of the file, everything included")
    axes.set_ylabel("accuracy on the test images, %")
    axes.set_title("ResNet-20 on CIFAR-10, compressed without training", fontsize=11)
    axes.set_ylim(top=dense["top1"] + 1.5)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(PICTURE, dpi=150)


def points(rows: list[Row], method: str) -> list[tuple[int, float]]:
    """Bytes and accuracies of a method."""
    return [(r["bytes"], r["top1"]) for r in rows if r["method"] == method]


def page(results: dict[str, dict[str, Any]], resnet20: Row) -> str:
    """The page, in Markdown. The template uses the results by the names of their files."""
    shown = {
        name: table
        for module in (tables, inference)
        for name, table in vars(module).items()
        if inspect.isfunction(table)
    }
    dense = next(r for r in resnet20["rows"] if r["method"] == "fp32")
    return fill(
        "results.md",
        **shown,
        **results,
        results=results,
        resnet20=resnet20,
        dense=dense,
        finetuned_table=finetuned.table,
        finetuned_headline=finetuned.headline,
    )


def reconstructed(rows: list[Row]) -> list[Row]:
    """The rows of `post_training.py` that belong into the table and picture of ResNet-20."""
    found = [r for r in rows if (r["network"], r["method"]) == ("resnet20", "tersor")]
    return [r | {"method": "reconstructed", "top1": r["quality"]} for r in found]


def between(table: str, text: str) -> str:
    """The text with this table between the two marks."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"a page for a table needs the lines {START} and {END}")
    return f"{before}{START}\n{table}\n{END}{after}"


def main() -> None:
    results = {path.stem: record.content(path.stem) for path in sorted(RESULTS.glob("*.json"))}
    untrained, trained = results["post_training"]["rows"], results["finetuning"]["rows"]
    resnet20, one_call = results["resnet20_cifar10"], results["one_call"]["rows"]
    resnet20 = resnet20 | {"rows": resnet20["rows"] + reconstructed(untrained)}
    dense = next(r for r in resnet20["rows"] if r["method"] == "fp32")
    picture(resnet20["rows"], one_call)
    finetuned.picture(TRAINED_PICTURE, trained, untrained)
    (DOCS / "results.md").write_text(page(results, resnet20))
    front = tables.front_table(dense, one_call, resnet20["rows"])
    for path in FRONTS:
        path.write_text(between(front, path.read_text()))
    low_rank = tables.low_rank_table(results["low_rank"]["rows"])
    LOW_RANK.write_text(between(low_rank, LOW_RANK.read_text()))
    EFFORT.write_text(between(tables.effort_table(one_call), EFFORT.read_text()))
    print("wrote docs/results.md, its pictures and the tables in other pages")


if __name__ == "__main__":
    main()
