# SPDX-License-Identifier: Apache-2.0
"""How fast is a layer computed from its factors on a GPU? Against dense bf16 and int4.

The layers of `kernels.py`, square ones with random factors, for inputs in bf16. Against torch with
the dense weight in bf16 (cuBLAS), and torchao's int4 weights (groups of 128) where it is there.
Every product is checked against the dense one first. Each way is a CUDA graph that calls so many
copies of its weights, one after the other, that none is in the cache; a run replays each graph
once, in turn, and ratios are medians of the runs' ratios. So only the GPU is timed: what Python
takes to start a layer is not.

Without a GPU, or triton, it says so and measures nothing.

    python -m benchmarks.speed.gpu_kernels [--sizes 4096] [--batches 1 16 128] [--runs 100]
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lib import parts, record
from benchmarks.lib.layers import LAYERS, factors_of, ratio
from tersor.kernels import missing_on
from tersor.nn.frozen import LookupWeight, PackedWeight

CACHE = 400_000_000
"""Bytes of weights to rotate among: many times the caches of large GPUs."""

DENSE = "torch bf16"

Product = Callable[[Tensor], Tensor]


def copies(nbytes: float) -> int:
    return max(2, min(200, round(CACHE / nbytes)))


def ours(form: type[PackedWeight], bits: int, size: int) -> tuple[list[Product], Tensor]:
    factors = factors_of(form, size, bits)
    first = form(factors, torch.bfloat16).cuda()
    held = [first, *(copy.deepcopy(first) for _ in range(copies(first.nbytes) - 1))]
    return [lambda x, w=w: w.linear(x, None) for w in held], factors.recompose().cuda()


def torch_bf16(weight: Tensor) -> list[Product]:
    weights = [weight.bfloat16() for _ in range(copies(weight.nbytes / 2))]
    return [lambda x, w=w: F.linear(x, w) for w in weights]


def torchao_int4(weight: Tensor) -> list[Product]:
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    config = Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d")
    models = []
    for _ in range(copies(weight.nbytes / 8)):
        layer = nn.Linear(*weight.shape[::-1], bias=False, device="cuda", dtype=torch.bfloat16)
        layer.weight.data.copy_(weight)
        models.append(nn.Sequential(layer))
        quantize_(models[-1], config)
    return models


def peers(weight: Tensor) -> Iterator[tuple[str, list[Product]]]:
    try:
        products = torchao_int4(weight)
        products[0](torch.zeros(1, weight.shape[1], dtype=torch.bfloat16, device="cuda"))
        yield "torchao int4", products
    except Exception as error:
        print(f"  torchao int4 is left out: {type(error).__name__}: {str(error)[:80]}")


def graph_of(products: list[Product], x: Tensor) -> torch.cuda.CUDAGraph:
    """A graph that calls each of them once; what first calls prepare and tune is done before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for product in products:
            product(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for product in products:
            product(x)
    return graph


def seconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def compare(kinds: dict[str, list[Product]], x: Tensor, runs: int) -> dict[str, list[float]]:
    graphs = {name: graph_of(products, x) for name, products in kinds.items()}
    for graph in graphs.values():
        seconds(graph)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(runs):
        for name, graph in graphs.items():
            times[name].append(seconds(graph) / len(kinds[name]))
    return times


def row(
    kinds: dict[str, list[Product]], weight: Tensor, form: type[PackedWeight], bits: int,
    batch: int, runs: int,
) -> dict[str, object]:  # fmt: skip
    x = torch.randn(batch, weight.shape[1], dtype=torch.bfloat16, device="cuda")
    expected, got = F.linear(x.float(), weight), kinds["tersor"][0](x).float()
    error = float((got - expected).norm() / expected.norm())
    assert error < 0.01, error
    times = compare(kinds, x, runs)
    others = [name for name in kinds if name not in ("tersor", DENSE)]
    best = min(others, key=lambda name: ratio(times, name), default=None)
    found = {
        "op": "linear",
        "kernel": "look-up" if form is LookupWeight else "integers",
        "shape": list(weight.shape),
        "batch": batch,
        "bits": bits,
        "device": torch.cuda.get_device_name(),
        "seconds": statistics.median(times["tersor"]),
        "ratio_bf16": ratio(times, DENSE),
        "best_peer": best,
        "ratio_best_peer": ratio(times, best) if best else None,
        "error": error,
    }
    print(
        f"{weight.shape[0]} batch {batch}, {found['kernel']} of {bits} bits: "
        f"{found['seconds'] * 1e6:.1f} us, {found['ratio_bf16']:.2f} x bf16, "
        + (f"{found['ratio_best_peer']:.2f} x {best}, " if best else "")
        + f"error {error:.5f}",
        flush=True,
    )
    return found


def unable() -> str:
    """Why nothing can be measured here."""
    if not torch.cuda.is_available():
        return "there is no GPU that torch can use"
    return missing_on(torch.device("cuda", torch.cuda.current_device()))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--no-file", action="store_true")
    options = parser.parse_args()
    if why := unable():
        print(f"nothing is measured: {why}")
        return
    torch.manual_seed(0)
    rows = []
    for size in options.sizes:
        for form, bits in LAYERS:
            products, weight = ours(form, bits, size)
            kinds = {DENSE: torch_bf16(weight), "tersor": products, **dict(peers(weight))}
            for batch in options.batches:
                rows.append(row(kinds, weight, form, bits, batch, options.runs))
    if not options.no_file:
        record.write("kernels_gpu", rows, measures=parts.KERNELS, seed=0)


if __name__ == "__main__":
    main()
