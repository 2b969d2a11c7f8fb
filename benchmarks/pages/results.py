# SPDX-License-Identifier: Apache-2.0
"""Write docs/results.md, the picture, and the table in the README, from the JSON in results/.

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
TRAINED_START, TRAINED_END = "<!-- fine-tuned: made by the same -->", "<!-- end of fine-tuned -->"
Row = dict[str, Any]


def picture(rows: list[Row]) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    styles = "v-", "D-", "o-", "s--", "^--"
    for (method, name), style in zip(tables.NAMES.items(), styles, strict=True):
        points = [r for r in rows if r["method"] == method]
        axes.plot(
            [r["bytes"] / 1e3 for r in points], [r["top1"] for r in points], style, label=name
        )
    dense = next(r for r in rows if r["method"] == "fp32")
    axes.axhline(dense["top1"], color="gray", linewidth=1)
    note = f"fp32, {dense['bytes'] / 1e3:,.0f} kB: {dense['top1']:.2f} %"
    axes.annotate(
        note,
        (max(r["bytes"] for r in rows if r is not dense) / 1e3, dense["top1"] + 0.3),
        ha="right",
        color="gray",
    )
    axes.set_xlabel("kB on disk, everything included")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title("ResNet-20 on CIFAR-10, compressed without training", fontsize=11)
    axes.set_ylim(top=dense["top1"] + 1.5)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(PICTURE, dpi=150)


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
    )


def reconstructed(rows: list[Row]) -> list[Row]:
    """The rows of `post_training.py` that belong into the table and picture of ResNet-20."""
    found = [r for r in rows if (r["network"], r["method"]) == ("resnet20", "tersor")]
    return [r | {"method": "reconstructed", "top1": r["quality"]} for r in found]


def between(start: str, end: str, table: str, text: str) -> str:
    """The text with this table between two marks."""
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{table}\n{end}{after}"


def main() -> None:
    results = {path.stem: record.content(path.stem) for path in sorted(RESULTS.glob("*.json"))}
    untrained, trained = results["post_training"]["rows"], results["finetuning"]["rows"]
    resnet20 = results["resnet20_cifar10"]
    resnet20 = resnet20 | {"rows": resnet20["rows"] + reconstructed(untrained)}
    picture(resnet20["rows"])
    finetuned.picture(TRAINED_PICTURE, trained, untrained)
    (DOCS / "results.md").write_text(page(results, resnet20))
    readme = ROOT / "README.md"
    text = between(START, END, tables.resnet20_table(resnet20["rows"]), readme.read_text())
    headline = finetuned.headline(trained, untrained)
    readme.write_text(between(TRAINED_START, TRAINED_END, headline, text))
    print("wrote docs/results.md, its pictures and the tables in README.md")


if __name__ == "__main__":
    main()
