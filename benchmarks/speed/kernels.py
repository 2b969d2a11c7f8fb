# SPDX-License-Identifier: Apache-2.0
"""How fast is a layer computed from its factors? Against torch in fp32, and low-bit kernels.

Square layers with random factors: latents spread so that nearly all fit in 4 bits, or in 2 bits
with few escapes ("integers"), and binary ones, 16 for each tile of 8 or 16 inputs, 2 or 1 bits
per weight ("look-up"). Each run times torch fp32, ours and the peers
in turn, every time with another of so many copies of the weights that none is in the cache; ratios
are medians of the runs' ratios.
Every product is checked against the dense one first;
``error`` is the Frobenius norm of the difference over that of the output.

Peers, where their packages are there: torch bf16 and dynamic int8, onnxruntime MatMulNBits (4 bits,
blocks of 32), torchao (int8 weights), GGML (4 and 2 bits, ternary, 1 bit; `ggml_peer`) and AQLM
(two codebooks of 8 bits for 8 inputs; one of 16 bits has no kernel for CPUs). None is needed; what
is not there is left out, with the reason. In the environment of the benchmarks,

    pip install onnx onnxruntime torchao "aqlm[cpu]" threadpoolctl ggml-python

installs them all. GGML is compiled for the processor on the way (C++ compiler, some minutes); AQLM
compiles its kernel by numba for every shape on first use, which is not timed.

    python -m benchmarks.speed.kernels [--sizes 4096 384] [--batches 1 4 16 128] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.lib import convolutions, parts, record
from benchmarks.lib.layers import LAYERS, Product, copies, factors_of, in_turn, ratio
from benchmarks.lib.peers import kernels as peers
from benchmarks.lib.turns import seconds
from tersor.factors import Factors
from tersor.nn.frozen import LookupWeight, PackedWeight

ERRORS = 8
"""Inputs whose errors count, as a norm over all; single ones of a small layer differ by a third."""


def ours(form: type[PackedWeight], factors: Factors) -> list[Product]:
    first = form(factors, torch.float32)
    products = [first, *(copy.deepcopy(first) for _ in range(copies(first.nbytes) - 1))]
    return [lambda x, held=held: held.linear(x, None) for held in products]


def torch_fp32(factors: Factors, weight: Tensor) -> list[Product]:
    weights = [weight.clone() for _ in range(copies(weight.nbytes))]
    return [lambda x, w=w: F.linear(x, w) for w in weights]


def runs_for(size: int, batch: int) -> int:
    most = 100 if torch.get_num_threads() == 1 else 30  # which are of several products each
    return max(9, min(most, round(2e9 / (size * size * (batch + 4)))))


def compare(kinds: dict[str, list[Product]], x: Tensor, runs: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for products in kinds.values():  # what a first call prepares is not timed
        products[0](x)
        for product in products:
            product(x[:1])
    each = {name: in_turn(products, x) for name, products in kinds.items()}
    for _ in range(runs):
        for name, run in each.items():
            times[name].append(seconds(run, torch.get_num_threads()))
    return times


def row(
    kinds: dict[str, list[Product]], weight: Tensor, batch: int, form: type[PackedWeight], bits: int
) -> dict[str, object]:
    size = weight.shape[0]
    inputs = torch.randn(ERRORS, batch, size)
    x, expected = inputs[0], F.linear(inputs, weight)
    got = torch.stack([kinds["tersor"][0](each) for each in inputs])
    error = float((got - expected).norm() / expected.norm())
    assert error < (0.01 if batch < form.way.MANY else 0.001), error
    times = compare(kinds, x, runs_for(size, batch))
    others = [name for name in kinds if name not in ("tersor", "torch fp32")]
    best = min(others, key=lambda name: ratio(times, name), default=None)
    found = {
        "op": "linear",
        "kernel": "look-up" if form is LookupWeight else "integers",
        "shape": [size, size],
        "batch": batch,
        "bits": bits,
        "threads": torch.get_num_threads(),
        "seconds": statistics.median(times["tersor"]),
        "ratio_fp32": ratio(times, "torch fp32"),
        "best_peer": best,
        "ratio_best_peer": ratio(times, best) if best else None,
        "ratios_peers": {name: ratio(times, name) for name in others},
        "error": error,
    }
    print(
        f"{size} batch {batch}, {found['kernel']} of {bits} bits, {found['threads']} threads: "
        f"{found['seconds'] * 1e3:.3f} ms, {found['ratio_fp32']:.2f} x fp32, "
        + (f"{found['ratio_best_peer']:.2f} x {best}, " if best else "")
        + f"error {error:.5f}",
        flush=True,
    )
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 384])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=30, help="of convolutions")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-file", action="store_true")
    parser.add_argument("--name", default="kernels", help="of the file of results")
    options = parser.parse_args()
    torch.manual_seed(0)
    for rows in measured(options):
        if not options.no_file:
            record.merge(options.name, rows, case, measures=parts.KERNELS, seed=0)


def measured(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Rows, as they come."""
    for threads in options.threads:
        torch.set_num_threads(threads)
        for size in options.sizes:
            for form, bits in LAYERS:
                factors = factors_of(form, size, bits)
                weight = factors.recompose()
                kinds = {"torch fp32": torch_fp32(factors, weight), "tersor": ours(form, factors)}
                kinds |= {} if options.no_peers else dict(peers.kernels_of(factors, weight))
                yield [row(kinds, weight, b, form, bits) for b in options.batches]
        if options.runs:
            yield convolutions.rows(options.runs)


def case(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a row from others."""
    kind = f"{row.get('factors', '')} {row['bits']:.1f} bits"  # random factors differ in bits
    return row["threads"], row["op"], row["kernel"], str(row["shape"]), kind, row["batch"]


if __name__ == "__main__":
    main()
