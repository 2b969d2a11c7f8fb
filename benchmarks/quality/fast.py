# SPDX-License-Identifier: Apache-2.0
"""What does ``fast`` cost in accuracy, at equal bytes?

Matrices as binary sums, as `tersor.compress` makes them of weights that are to be fast, at 1 and
2 bits per weight; and what `tersor.factorize` makes of the same matrices in as many bytes. Costs
are differences of the signal-to-noise ratios in dB; 6.02 dB are a bit per weight.

    python -m benchmarks.quality.fast [--sources gaussian minilm] [--only NAME...] [--no-file]
"""

from __future__ import annotations

import argparse
import time
from statistics import fmean
from typing import Any

import tersor
from benchmarks.lib import parts, record
from benchmarks.lib.tensors import SEED, Sample, samples, signal_to_noise
from tersor.factorization.weights import BINARY, factorize_binary

Row = dict[str, Any]

TILES = {bits: BINARY // bits for bits in (1, 2)}


def measure(sample: Sample, bits: int) -> Row:
    start = time.perf_counter()
    fast = factorize_binary(sample.weight, TILES[bits])
    seconds = time.perf_counter() - start
    taken = 8 * fast.nbytes / sample.numel
    start = time.perf_counter()
    usual = tersor.factorize(sample.weight, bits_per_weight=taken).factors
    usual_seconds = time.perf_counter() - start
    snr = signal_to_noise(sample.weight, fast.recompose())
    usual_snr = signal_to_noise(sample.weight, usual.recompose())
    row = {**sample.facts(), "bits": taken, "tile": TILES[bits], "snr": snr, "usual_snr": usual_snr}
    row |= {"usual_bits": 8 * usual.nbytes / sample.numel, "cost": usual_snr - snr}
    row |= {"asked": bits, "seconds": round(seconds, 2), "usual_seconds": round(usual_seconds, 2)}
    print(
        f"{sample.name}: {taken:.3f} bits, {snr:.2f} dB in {seconds:.1f} s, usual {usual_snr:.2f} "
        f"dB in {usual_seconds:.1f} s, cost {row['cost']:.2f} dB",
        flush=True,
    )
    return row


def means(rows: list[Row]) -> list[Row]:
    groups = sorted({(r["source"], r["asked"]) for r in rows})
    found = []
    for source, asked in groups:
        costs = [r["cost"] for r in rows if (r["source"], r["asked"]) == (source, asked)]
        found.append(
            {"source": source, "asked": asked, "tensors": len(costs), "cost": fmean(costs)}
        )
        print(f"{source} at {asked} bits: {len(costs)} matrices, cost {fmean(costs):.2f} dB")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", nargs="+", default=["gaussian", "minilm"])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="tensors with this in their name")
    parser.add_argument("--no-file", action="store_true")
    options = parser.parse_args()
    only = options.only or ["independent", "encoder.layer"]
    chosen = [
        sample
        for source in options.sources
        for sample in samples(source)
        if sample.weight.ndim == 2 and any(part in sample.name for part in only)
    ]
    rows = [measure(sample, bits) for sample in chosen for bits in TILES]
    summary = means(rows)
    if not options.no_file:
        record.write("fast", rows, measures=parts.SOLVER, seed=SEED, means=summary)


if __name__ == "__main__":
    main()
