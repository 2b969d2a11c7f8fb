# SPDX-License-Identifier: Apache-2.0
"""The part of docs/results.md about inference; see `results`."""

from __future__ import annotations

import statistics
from typing import Any

Row = dict[str, Any]


def kernels_table(rows: list[Row]) -> str:
    """One line per layer and kernel: how many times faster at each batch, and than which peer."""
    linear = [r for r in rows if r["op"] == "linear"]
    batches = sorted({r["batch"] for r in linear})
    lines = [
        "| layer | kernel | threads | " + " | ".join(f"batch {b}" for b in batches) + " |",
        "| --- | --- | ---: |" + " ---: |" * len(batches),
    ]
    groups = dict.fromkeys(
        (tuple(r["shape"]), r["kernel"], r["bits"], r["threads"]) for r in linear
    )
    for shape, kernel, bits, threads in groups:
        cells = [
            f"{r['ratio_fp32']:.1f}"
            + (f", {r['ratio_best_peer']:.1f} ({r['best_peer']})" if r["best_peer"] else "")
            for r in sorted(linear, key=lambda r: float(r["batch"]))
            if (tuple(r["shape"]), r["kernel"], r["bits"], r["threads"])
            == (shape, kernel, bits, threads)
        ]
        heads = [
            " x ".join(map(str, shape)),
            f"{kernel}, {bits} bit{'s' * (bits > 1)}",
            str(threads),
        ]
        lines.append("| " + " | ".join(heads + cells) + " |")
    return "\n".join(lines)


def peers_of(rows: list[Row]) -> str:
    """Names of the peers of matrices."""
    return ", ".join(dict.fromkeys(name for r in rows for name in r.get("ratios_peers", {})))


def one_vector(rows: list[Row]) -> str:
    """What torch takes for one vector, by threads: what ratios at batch 1 are of."""
    times: dict[int, list[float]] = {}
    for r in rows:
        if r["op"] == "linear" and r["shape"] == [4096, 4096] and r["batch"] == 1:
            times.setdefault(r["threads"], []).append(1e3 * r["seconds"] * r["ratio_fp32"])
    medians = [
        f"{statistics.median(t):.1f} ms on {n} thread{'s' * (n > 1)}"
        for n, t in sorted(times.items())
    ]
    return f"Torch takes {' and '.join(medians)} for one vector of 4096 numbers."


def models_table(rows: list[Row]) -> str:
    """One line per network: ratios of times, memory, and quality."""
    names = list(dict.fromkeys(name for r in rows for name in r["ratios"]))
    lines = [
        "| network | threads | ms | " + " | ".join(names) + " | memory | error |",
        "| --- |" + " ---: |" * (4 + len(names)),
    ]
    for r in rows:
        cells = [r["network"], str(r["threads"]), f"{1e3 * r['seconds']['tersor']:.1f}"]
        cells += [f"{r['ratios'][name]:.2f}" if name in r["ratios"] else "" for name in names]
        cells += [f"{r['memory'] / r['dense_memory']:.2f}", f"{100 * r['error']:.2f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gpu_table(rows: list[Row]) -> str:
    """One line per kernel of a GPU: microseconds, times faster than bf16 and than the peer."""
    batches = sorted({r["batch"] for r in rows})
    lines = [
        "| layer | kernel | " + " | ".join(f"batch {b}" for b in batches) + " |",
        "| --- | --- |" + " ---: |" * len(batches),
    ]
    for shape, kernel, bits in dict.fromkeys(
        (tuple(r["shape"]), r["kernel"], r["bits"]) for r in rows
    ):
        cells = [
            f"{1e6 * r['seconds']:.0f} us, {r['ratio_bf16']:.2f}, {r['ratio_best_peer']:.2f}"
            for r in sorted(rows, key=lambda r: int(r["batch"]))
            if (tuple(r["shape"]), r["kernel"], r["bits"]) == (shape, kernel, bits)
        ]
        layer, name = " x ".join(map(str, shape)), f"{kernel}, {bits} bit{'s' * (bits > 1)}"
        lines.append("| " + " | ".join([layer, name, *cells]) + " |")
    return "\n".join(lines)
