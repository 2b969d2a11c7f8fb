# SPDX-License-Identifier: Apache-2.0
"""How many states does the trellis need? Gaussian weights, single ones as tiles.

For each number of states and a few step sizes: bits per weight as the coder spends them, and the
distance of the signal-to-noise ratio, in dB, to the Shannon bound at these bits.

    python -m benchmarks.quality.states [--weights 1048576]
"""

from __future__ import annotations

import argparse
import math

import torch

from benchmarks.lib import parts, record
from tersor.coding.rate import row_bits
from tersor.factorization.rate_aware import solve_rate_aware

ROWS = 512
STATES = (1, 4, 8, 16, 32, 64)
STEPS = (1.0, 0.5, 0.25)
"""Step sizes, in units of the standard deviation; with a trellis half of that has about the same
rate."""


def measure(weights: torch.Tensor, states: int, step: float) -> dict[str, float]:
    """Factor the weights, and return what came of it."""
    spacing = step if states == 1 else step / 2
    tiles = weights / spacing
    result = solve_rate_aware(tiles, ROWS, states=states)
    error = tiles - result.codebook @ result.latent
    bits = float(row_bits(result.latent, ROWS, states).sum()) / weights.numel()
    snr = 10 * math.log10(float(tiles.square().sum() / error.square().sum()))
    bound = 20 * math.log10(2) * bits
    return {"states": states, "step": step, "bits": bits, "gap": bound - snr}


def main() -> None:
    """Measure all numbers of states at all step sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=1 << 20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights = torch.randn(1, options.weights, generator=torch.Generator().manual_seed(0))
    rows = [measure(weights, states, step) for step in STEPS for states in STATES]
    for row in rows:
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    record.write("states", rows, measures=parts.SOLVER, seed=0, weights=options.weights)


if __name__ == "__main__":
    main()
