# SPDX-License-Identifier: Apache-2.0
"""How close to the Shannon bound is each method, in SNR at equal bytes?

The yardstick is the Gaussian bound of one fixed tile per tensor (`tensors.bound`) at the bytes that
tersor really takes, whatever tile the solver chose: the gap is the bound's SNR less the one
achieved. Peers (`quantizers`) are curves of SNR against bits. Each is read at tersor's bits,
linearly between the points around them, at the best of its settings; a peer that cannot get there
is left out. Tensors whose tiles are far from independent (position embeddings) can beat this bound;
means are given with and without them. Peers do not depend on the solver: their curves are kept in
results/rate_distortion_peers.json, and what is in the results is not computed again.

    python -m benchmarks.quality.rate_distortion [--sources gaussian resnet20 mobilenet minilm]
        [--methods tersor kmeans scalar additive nncodec] [--only NAME...] [--recompute METHOD...]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
from bisect import bisect_left
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import tersor
from benchmarks.lib import environments, parts, record
from benchmarks.lib.peers import quantizers as peers
from benchmarks.lib.places import ROOT
from benchmarks.lib.tensors import SEED, SOURCES, Sample, bound, samples, signal_to_noise
from tersor.factors import Factors

OURS, PEERS = "rate_distortion", "rate_distortion_peers"
NAMES = {
    "kmeans": "k-means VQ",
    "scalar": "scalar + entropy coding",
    "additive": "additive VQ, 2 columns",
    "nncodec": "NNCodec, best rate weight",
    "nncodec_default": "NNCodec, default",
}
DEFAULT = {"nncodec_default": ("nncodec", "rate weight 0.0")}
"""Names that stand for a single setting of a method."""

BELOW, ABOVE = 0.9, 1.05
"""How far beyond its ends a curve is continued, as a line; as curves bend down, in its favour."""

SHOWN = ("resnet20", "layer3.1.conv1.weight")
PICTURE = ROOT / "docs" / "rate_distortion.png"

Row = dict[str, Any]


def main() -> None:
    options = parse()
    torch.manual_seed(SEED)
    ours, curves = record.load(OURS), record.load(PEERS)
    ours = [r for r in ours if not dropped(r, "tersor", options)]
    curves = [r for r in curves if not dropped(r, r["method"], options)]
    for sample in chosen(options):
        measure_peers(sample, options.methods, curves)
        if "tersor" in options.methods:
            measure_ours(sample, ours)
        compare(ours, curves)
        save(ours, curves)
    compare(ours, curves)
    save(ours, curves)
    show(ours)
    picture(ours, curves)


def parse() -> argparse.Namespace:
    methods = ["tersor", *peers.PEERS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES)
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="tensors with this in their name")
    parser.add_argument(
        "--recompute", nargs="+", choices=methods, default=[], help="forget results of the sources"
    )
    return parser.parse_args()


def dropped(row: Row, method: str, options: argparse.Namespace) -> bool:
    """Whether a stored row is to be computed again."""
    return (
        method in options.recompute
        and row["source"] in options.sources
        and selected(row["tensor"], options)
    )


def selected(name: str, options: argparse.Namespace) -> bool:
    return not options.only or any(part in name for part in options.only)


def chosen(options: argparse.Namespace) -> Iterator[Sample]:
    for source in options.sources:
        yield from (s for s in samples(source) if selected(s.name, options))


def of(sample: Sample, rows: list[Row]) -> list[Row]:
    return [r for r in rows if (r["source"], r["tensor"]) == (sample.source, sample.name)]


def measure_peers(sample: Sample, methods: list[str], curves: list[Row]) -> None:
    """Add the curves of those methods that lack them."""
    known = {r["method"] for r in of(sample, curves)}
    for method in [m for m in peers.PEERS if m in methods and m not in known]:
        start = time.perf_counter()
        found = peers.PEERS[method](sample)
        seconds = round(time.perf_counter() - start, 2)
        for setting, points in found.items():
            facts = {"method": method, "setting": setting, "seconds": seconds}
            curves.append({**sample.facts(), **facts, "points": points})
        progress(sample, f"{method}, {seconds:.1f} s")


def measure_ours(sample: Sample, ours: list[Row]) -> None:
    """Add our points at the rates that lack them."""
    known = {r["asked"] for r in of(sample, ours)}
    for asked in [r for r in sample.rates if r not in known]:
        start = time.perf_counter()
        factors = factors_of(tersor.factorize(sample.weight, bits_per_weight=asked))
        seconds = round(time.perf_counter() - start, 2)
        bits = 8 * factors.nbytes / sample.numel
        snr = signal_to_noise(sample.weight, factors.recompose())
        least = bound(sample.weight, bits)
        facts = {"asked": asked, "bytes": factors.nbytes, "bits": bits, "seconds": seconds}
        quality = {"snr": snr, "bound": least, "gap": least - snr, "tile": factors.tiling.size}
        ours.append({**sample.facts(), **facts, **quality, "rank": factors.rank})
        progress(sample, f"tersor at {bits:.3f} bits: {snr:.2f} dB, gap {least - snr:.2f} dB")


def factors_of(result: Any) -> Factors:
    """Factors, whether they came alone or as a part of a solution."""
    return result if isinstance(result, Factors) else result.factors


def progress(sample: Sample, message: str) -> None:
    print(f"{sample.source} {sample.name}: {message}", flush=True)


def compare(ours: list[Row], curves: list[Row]) -> None:
    """Tell each of our rows the SNR of the peers at its bits, and how far it is ahead of them."""
    for row in ours:
        of_tensor = [c for c in curves if all(c[k] == row[k] for k in ("source", "tensor"))]
        row["peers"] = {name: read(of_tensor, name, row["bits"]) for name in NAMES}
        row["ahead"] = {n: row["snr"] - snr for n, snr in row["peers"].items() if snr is not None}


def read(curves: list[Row], name: str, bits: float) -> float | None:
    """SNR of a method at these bits, best of its settings; None if no curve gets there."""
    method, setting = DEFAULT.get(name, (name, None))
    values = [
        at(c["points"], bits)
        for c in curves
        if c["method"] == method and setting in (None, c["setting"])
        if len(c["points"]) > 1
        if BELOW * c["points"][0][0] <= bits <= ABOVE * c["points"][-1][0]
    ]
    return max(values, default=None)


def at(points: list[peers.Point], bits: float) -> float:
    """The line through the two points around ``bits``, or through the two nearest to it."""
    after = min(max(bisect_left(points, bits, key=lambda p: p[0]), 1), len(points) - 1)
    (b0, snr0), (b1, snr1) = points[after - 1], points[after]
    return snr0 + (bits - b0) * (snr1 - snr0) / (b1 - b0)


def save(ours: list[Row], curves: list[Row]) -> None:
    record.save(OURS, ours, measures=parts.SOLVER, seed=SEED, means=means(ours))
    versions = {"scikit-learn": importlib.metadata.version("scikit-learn")}
    versions["nncodec"] = environments.version_of("nncodec")
    record.save(PEERS, curves, measures=(), seed=SEED, peer_versions=versions)


def means(ours: list[Row]) -> list[Row]:
    """Mean gaps and advantages of each source at each rate, and of all networks' tensors."""
    groups = {source: [r for r in ours if r["source"] == source] for source in SOURCES}
    groups["networks"] = [r for r in ours if r["source"] != "gaussian"]
    return [
        {"source": source, "asked": asked, **mean([r for r in rows if r["asked"] == asked])}
        for source, rows in groups.items()
        for asked in sorted({r["asked"] for r in rows})
    ]


def mean(rows: list[Row]) -> Row:
    ahead = {n: [r["ahead"][n] for r in rows if n in r["ahead"]] for n in NAMES}
    gaps = {n: [r["bound"] - r["peers"][n] for r in rows if n in r["ahead"]] for n in NAMES}
    above = [r["gap"] for r in rows if r["gap"] > 0]
    return {
        "tensors": len(rows),
        "gap": fmean(r["gap"] for r in rows),
        "beat_bound": len(rows) - len(above),
        "gap_of_others": fmean(above) if above else None,
        "ahead": {n: fmean(values) for n, values in ahead.items() if values},
        "compared": {n: len(values) for n, values in ahead.items()},
        "peer_gaps": {n: fmean(values) for n, values in gaps.items() if values},
    }


def show(ours: list[Row]) -> None:
    """A table of tensors for each source, and one of means."""
    console = Console(width=120)
    order = {source: place for place, source in enumerate(SOURCES)}
    for source in sorted({r["source"] for r in ours}, key=order.__getitem__):
        console.print(tensor_table(source, [r for r in ours if r["source"] == source]))
    console.print(mean_table(means(ours)))


def tensor_table(source: str, rows: list[Row]) -> Table:
    table = peers_table(f"{source}: gap to the bound, and ahead of peers at equal bytes, in dB")
    for r in rows:
        numbers = (f"{r['bits']:.3f}", f"{r['snr']:.2f}", f"{r['gap']:.2f}")
        table.add_row(r["tensor"], *numbers, *ahead_cells(r))
    return table


def mean_table(rows: list[Row]) -> Table:
    table = peers_table("Means; gap in brackets: without tensors that beat the bound", "tensors")
    for m in rows:
        others = f"{m['gap_of_others']:.2f}" if m["gap_of_others"] is not None else "-"
        gap = f"{m['gap']:.2f} ({others})" if m["beat_bound"] else f"{m['gap']:.2f}"
        numbers = (f"{m['asked']:g}", str(m["tensors"]), gap)
        table.add_row(m["source"], *numbers, *ahead_cells(m))
    return table


def peers_table(title: str, third: str = "SNR") -> Table:
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("", overflow="fold")
    for column in ("bits", third, "gap", *NAMES.values()):
        table.add_column(column, justify="right")
    return table


def ahead_cells(row: Row) -> list[str]:
    return [f"{row['ahead'][n]:+.2f}" if n in row["ahead"] else "-" for n in NAMES]


def picture(ours: list[Row], curves: list[Row]) -> None:
    """SNR of one layer, and mean gap of tensors that have all peers, against bits per weight."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_layer(left, [r for r in ours if is_shown(r)], [c for c in curves if is_shown(c)])
    complete = [r for r in ours if r["gap"] > 0 and len(r["ahead"]) == len(NAMES)]
    draw_gaps(right, [m for m in means(complete) if m["source"] == "networks"])
    figure.savefig(PICTURE, dpi=150)
    print(f"wrote {PICTURE.relative_to(ROOT)}")


def is_shown(row: Row) -> bool:
    return (row["source"], row["tensor"]) == SHOWN


def styles() -> dict[str, dict[str, Any]]:
    """Colour and marker of each peer, the same in both panels."""
    markers = zip(NAMES, ("s", "^", "D", "v", "x"), strict=True)
    return {n: {"color": f"C{i + 1}", "marker": m} for i, (n, m) in enumerate(markers)}


def draw_layer(axes: Axes, ours: list[Row], curves: list[Row]) -> None:
    grid = np.linspace(0.9, 3.05, 44)
    weight = next((s.weight for s in samples(SHOWN[0]) if s.name == SHOWN[1]), None)
    if weight is not None:
        axes.plot(grid, [bound(weight, b) for b in grid], "k-", label="Gaussian bound")
    line = sorted((r["bits"], r["snr"]) for r in ours)
    axes.plot(*zip(*line, strict=True), "o", color="C0", label="tersor", zorder=3)
    for name, style in styles().items():
        values = [read(curves, name, b) for b in grid]
        snr = [np.nan if v is None else v for v in values]
        axes.plot(grid, snr, label=NAMES[name], markevery=6, markersize=4, linewidth=1, **style)
    title = f"{SHOWN[1].removesuffix('.weight')} of ResNet-20, 64x64x3x3"
    axes.set(title=title, xlabel="bits per weight, everything counted", ylabel="SNR, dB")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def draw_gaps(axes: Axes, rows: list[Row]) -> None:
    bits = [m["asked"] for m in rows]
    axes.plot(bits, [m["gap"] for m in rows], "o-", color="C0", label="tersor", zorder=3)
    for name, style in styles().items():
        gaps = [m["peer_gaps"].get(name, np.nan) for m in rows]
        axes.plot(bits, gaps, label=NAMES[name], linewidth=1, markersize=4, **style)
    number = max((m["tensors"] for m in rows), default=0)
    axes.set(
        title=f"mean of {number} tensors of three networks", xlabel="bits per weight asked for"
    )
    axes.set(ylabel="gap to the Gaussian bound, dB", ylim=(0, None), xticks=bits)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
