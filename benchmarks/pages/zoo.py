# SPDX-License-Identifier: Apache-2.0
"""Write docs/zoo.md and docs/zoo.png from results/zoo.json, finetuning.json and artifacts/.

python -m benchmarks.pages.zoo
"""

from __future__ import annotations

import math
import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.lib import record
from benchmarks.lib.places import DOCS, ROOT
from benchmarks.lib.template import fill
from benchmarks.pages import finetuned

PAGE, PICTURE = DOCS / "zoo.md", DOCS / "zoo.png"
STYLES = {
    "reconstructed": "v-",
    "calibrated": "D-",
    "data-free": "o-",
    "scalar": "^--",
}
TITLES = {
    "reconstructed": "tersor, reconstructed",
    "calibrated": "tersor, calibrated",
    "data-free": "tersor, data-free",
    "scalar": "scalar quantization, same coder",
}
COLUMNS = 3
NOTICEABLE = 0.005
"""Share of the dense model's figure by which a method must be worse to be said so."""

Row = dict[str, Any]


def figure_of(row: Row) -> float | None:
    """The figure that stands for the others; None if there is none."""
    return next(iter(row["figures"].values())) if "figures" in row else None


def find(rows: list[Row], method: str, asked: float) -> Row | None:
    return next((r for r in rows if r["method"] == method and r["asked"] == asked), None)


def methods(rows: list[Row]) -> set[str]:
    return {row["method"] for row in rows}


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    if (value := figure_of(row)) is None:
        return "refused" if "refused" in row else "failed"
    return f"{value:.4g} at {row['bytes']:,} bytes"


def table(rows: list[Row]) -> list[str]:
    lines = [
        "| asked | " + " | ".join(TITLES.values()) + " |",
        "| ---: |" + " ---: |" * len(TITLES),
    ]
    for asked in sorted({r["asked"] for r in rows} - {1.0}):
        cells = [cell(find(rows, method, asked)) for method in TITLES]
        lines.append(f"| {asked:g}x | " + " | ".join(cells) + " |")
    return lines


def remarks(rows: list[Row]) -> list[str]:
    """What went wrong, and where the peer is better."""
    found = []
    dense = figure_of(next(r for r in rows if r["method"] == "dense")) or 1.0
    for asked in sorted({r["asked"] for r in rows} - {1.0}):
        values = {m: figure_of(r) for m in TITLES if (r := find(rows, m, asked)) is not None}
        ours = {m: v for m, v in values.items() if v is not None}
        if (peer := ours.pop("scalar", None)) is None or not ours:
            continue
        bound = peer - NOTICEABLE * abs(dense)
        if max(ours.values()) < bound:
            found.append(
                f"At {asked:g}x the peer is better: {peer:.4g}, ours {max(ours.values()):.4g}."
            )
        elif ours.get("data-free", peer) < bound:
            value = ours["data-free"]
            found.append(f"At {asked:g}x the peer is better than ours without data: {value:.4g}.")
    for row in rows:
        where = f"{row['method']} at {row['asked']:g}x"
        if row.get("load_differs_by", 0) > 1e-3:
            wanted = next(iter(row.get("by_load_state_dict", {}).values()), math.nan)
            found.append(f"**`load` differs from `load_state_dict`**, {where}: {wanted:.4g} by it.")
        for kind in ("refused", "failed"):
            if kind in row:
                found.append(f"{where} {kind}: {row[kind]}")
    return found


def overview(models: dict[str, Row], by_model: dict[str, list[Row]]) -> list[str]:
    """One line per model: the figure as shipped, and the best of ours at each size."""
    sizes = sorted({r["asked"] for rows in by_model.values() for r in rows} - {1.0})
    lines = [
        "| model | measured | as shipped | " + " | ".join(f"{n:g}x" for n in sizes) + " |",
        "| --- | --- | ---: |" + " ---: |" * len(sizes),
    ]
    for name, rows in by_model.items():
        dense = next(r for r in rows if r["method"] == "dense")
        cells = [_best_of_ours([r for r in rows if r["asked"] == asked]) for asked in sizes]
        title = f"{name}: {models[name]['purpose']}"
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        shipped = f"{figure_of(dense):.4g} at {dense['bytes'] / 1e3:,.0f} kB"
        heads = [f"[{title}](#{anchor})", models[name]["measure"].split(",")[0], shipped]
        lines.append("| " + " | ".join(heads + cells) + " |")
    return lines


def _best_of_ours(rows: list[Row]) -> str:
    ours = [r for r in rows if r["method"] != "scalar" and "figures" in r]
    if not ours:
        return ""
    best = max(ours, key=lambda r: figure_of(r) or -math.inf)
    only = ", data-free" if methods(ours) == {"data-free"} else ""
    return f"{figure_of(best):.4g} at {best['bytes'] / 1e3:,.0f} kB{only}"


def artifacts(rows: list[Row]) -> list[str]:
    """One line per file that is in the repository, with the accuracy of the run that made it."""
    lines = [
        "| file | bytes | accuracy on CIFAR-10 | taught by |",
        "| --- | ---: | ---: | --- |",
    ]
    for path in sorted((ROOT / "benchmarks" / "artifacts").glob("*.tersor")):
        network, _, rest = path.stem.partition("_")
        found = [
            r
            for r in rows
            if (r["network"], r["bytes"]) == (network, path.stat().st_size)
            and (r["teacher"] != network) == rest.endswith("taught")
        ]
        assert len(found) == 1, f"{path} is of {len(found)} runs"
        teacher = finetuned.names(found[0]["teacher"])
        cells = f"{found[0]['bytes']:,} | {found[0]['top1']:.2f} % | {teacher}"
        lines.append(f"| `{path.name}` | {cells} |")
    return lines


def section(name: str, facts: Row, rows: list[Row]) -> str:
    dense = next(r for r in rows if r["method"] == "dense")
    layers = ", ".join(f"{n} {kind}" for kind, n in dense["layers"].items())
    others = "; ".join(f"{k} {v:.4g}" for k, v in list(dense["figures"].items())[1:])
    return "\n".join(
        [
            f"## {name}: {facts['purpose']}",
            "",
            f"`{facts['packages'][0]}` ({facts['licence']}), {dense['parameters']:,} weights in "
            f"{dense['bytes']:,} bytes: {layers}.",
            f"Measured: {facts['measure']}; dense **{figure_of(dense):.4g}**"
            + (f" (also: {others})." if others else "."),
            "",
            *table(rows),
            "",
            *(f"- {remark}" for remark in remarks(rows)),
            "",
        ]
    )


def draw(axes: Axes, name: str, facts: Row, rows: list[Row]) -> None:
    for method, style in STYLES.items():
        points = [r for r in rows if r["method"] == method and "figures" in r]
        sizes = [r["bytes"] / 1e3 for r in points]
        axes.plot(sizes, [figure_of(r) for r in points], style, label=TITLES[method], markersize=4)
    axes.axhline(
        figure_of(next(r for r in rows if r["method"] == "dense")), color="gray", linewidth=1
    )
    axes.set_title(f"{name}: {facts['purpose']}", fontsize=9)
    axes.set_ylabel(facts["measure"].split(",")[0], fontsize=6)
    axes.set_xlabel("kB on disk", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def picture(models: dict[str, Row], by_model: dict[str, list[Row]]) -> None:
    lines = math.ceil(len(by_model) / COLUMNS)
    figure = Figure(figsize=(10, 2.6 * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, COLUMNS, squeeze=False).flatten()
    for axes, (name, rows) in zip(grid, by_model.items(), strict=False):
        draw(axes, name, models[name], rows)
    for axes in grid[len(by_model) :]:
        axes.set_axis_off()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    results = record.content("zoo")
    models = results["models"]
    rows: dict[str, list[Row]] = {}
    for row in results["rows"]:
        rows.setdefault(row["model"], []).append(row)
    by_model = {n: rows[n] for n in models if {"dense", "data-free"} <= methods(rows.get(n, []))}
    machine, versions = results["machine"], results["versions"]
    foot = (
        f"Seed {results['seed']}; {machine['processor']}, {machine['cores']} cores; tersor "
        f"{versions['tersor']}, torch {versions['torch']}, Python {versions['python']}. "
        "`python -m benchmarks.quality.zoo --fetch --again`, then "
        "`python -m benchmarks.pages.zoo`, makes it anew.\n"
    )
    parts = [section(name, models[name], found) for name, found in by_model.items()]
    shown = {
        "overview": "\n".join(overview(models, by_model)),
        "artifacts": "\n".join(artifacts(record.content("finetuning")["rows"])),
        "dense": {
            r["network"]: r for r in record.content("post_training")["rows"] if r["asked"] == 1
        },
    }
    PAGE.write_text(fill("zoo.md", parts=parts, foot=foot, **shown), encoding="utf-8")
    picture(models, by_model)
    print(f"wrote {PAGE.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
