# SPDX-License-Identifier: Apache-2.0
"""Is the solver steady? Independent Gaussian weights: seeds, sizes and rates.

For each it reports the gap to the Gaussian bound at the bytes that were taken, 6.02 dB a bit, and
the share of the budget that was used. Results are the same on every machine.

    python -m benchmarks.quality.steadiness [--sizes 512 1024] [--seeds 10]
"""

from __future__ import annotations

import argparse
import math
from statistics import fmean
from typing import Any

import torch

import tersor
from benchmarks.lib import parts, record
from tersor.factors import signal_to_noise

NAME = "steadiness"
RATES = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
RATES += (2.3, 2.6, 3.0)
DECIBELS = 20 * math.log10(2)

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for size in options.sizes:
        for seed in range(options.seeds):
            generator = torch.Generator().manual_seed(seed)
            weight = torch.randn(size, size, generator=generator)
            rows += [measured(weight, rate, size=size, seed=seed) for rate in options.rates]
            print(f"{size}, seed {seed}: {summary(rows[-len(options.rates) :])}", flush=True)
    by_rate = [
        {"size": size, "asked": rate, **summary([r for r in rows if key(r) == (size, rate)])}
        for size in options.sizes
        for rate in options.rates
    ]
    for row in by_rate:
        print(row)
    print(summary(rows))
    facts = {"seeds": options.seeds, "rates": by_rate, "summary": summary(rows)}
    record.write(NAME, rows, measures=(*parts.SOLVER, "src/tersor/compression"), **facts)


def measured(weight: torch.Tensor, rate: float, **facts: int) -> Row:
    """Factor a weight at a rate."""
    solution = tersor.factorize(weight, bits_per_weight=rate)
    bits = solution.factors.bits_per_weight
    energy = float(weight.double().square().mean())
    gap = DECIBELS * bits - signal_to_noise(weight, solution.factors)
    facts = {**facts, "tile": solution.factors.tiling.size, "attempts": len(solution.history)}
    return {**facts, "asked": rate, "bits": bits, "used": bits / rate, "gap": gap, "energy": energy}


def key(row: Row) -> tuple[int, float]:
    return row["size"], row["asked"]


def summary(rows: list[Row]) -> Row:
    """Mean and worst gap, and the least share of the budget."""
    gaps = [r["gap"] for r in rows]
    found = {"gap": fmean(gaps), "worst": max(gaps), "least_used": min(r["used"] for r in rows)}
    return {name: round(value, 4) for name, value in found.items()}


if __name__ == "__main__":
    main()
