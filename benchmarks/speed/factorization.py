# SPDX-License-Identifier: Apache-2.0
"""How much CPU time does data-free compression take, for each weight?

A synthetic checkpoint has the shapes of a small Llama: heavy-tailed weights (Student's t), rows and
inputs of different scales, and embeddings with a few strong directions. The whole pipeline runs on
it in one thread and in a process of its own: reading, choice of tiles, passes, choice of versions,
writing. The figure is CPU time (user and system), not wall time, as machines are shared.
``--against`` takes the folder of another checkout, whose native modules are built, and runs it in
turn, at the same bytes.

    python -m benchmarks.speed.factorization [--bits 2 3] [--runs 3] [--against FOLDER] [--layers 4]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from benchmarks.lib import parts, record
from benchmarks.lib.places import ROOT

SEED = 0
HIDDEN, INNER, VOCABULARY = 512, 1376, 8192
DEGREES = 5.0
"""Degrees of freedom of Student's t distribution: excess kurtosis 6, as in language models."""

MEASURE = """
import json, math, resource, sys, time
import torch
torch.set_num_threads(1)
from tersor.compression.driver import compress_source
from tersor.storage.checkpoint import open_checkpoint
path, bits = sys.argv[1], float(sys.argv[2])
start = time.process_time()
archive = compress_source(open_checkpoint(path), bits_per_weight=bits)
seconds = time.process_time() - start
source = open_checkpoint(path)
signal = error = numel = 0
for name in source.names:
    weight = source.load(name).double()
    numel += weight.numel()
    signal += float(weight.square().sum())
    error += float((weight - archive.tensor(name).double()).square().sum())
from tersor.storage import container
print(json.dumps({
    "seconds": seconds,
    "weights": numel,
    "snr": 10 * math.log10(signal / error),
    "bytes": container.size(archive),
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.0, 3.0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    trees = {"this": ROOT}
    if options.against:
        trees["other"] = options.against.resolve()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "llama.safetensors"
        save_file(llama(options.layers), checkpoint)
        for bits in options.bits:
            found: dict[str, list[dict[str, Any]]] = {tree: [] for tree in trees}
            for _ in range(options.runs):
                for tree, path in trees.items():
                    found[tree].append(measure(path, checkpoint, bits))
            for tree, results in found.items():
                rows.append({"tree": tree, "asked": bits, **summary(results)})
                print(rows[-1], flush=True)
    facts = {"layers": options.layers, "runs": options.runs, "threads": 1}
    record.write("factorization", rows, measures=parts.MODELS, seed=SEED, **facts)


def llama(layers: int) -> dict[str, Tensor]:
    """Weights of a small Llama, bfloat16."""
    generator = torch.Generator().manual_seed(SEED)
    weights = {"model.embed_tokens.weight": embedding(generator)}
    square, wide, narrow = (HIDDEN, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for part in "qkvo":
            weights[f"{prefix}.self_attn.{part}_proj.weight"] = matrix(square, generator)
        weights[f"{prefix}.mlp.gate_proj.weight"] = matrix(wide, generator)
        weights[f"{prefix}.mlp.up_proj.weight"] = matrix(wide, generator)
        weights[f"{prefix}.mlp.down_proj.weight"] = matrix(narrow, generator)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{norm}.weight"] = torch.ones(HIDDEN)
    return {name: weight.to(torch.bfloat16) for name, weight in weights.items()}


def matrix(shape: tuple[int, int], generator: Generator) -> Tensor:
    """Heavy-tailed weights whose rows and inputs have log-normal scales."""
    normal = torch.randn(shape, generator=generator)
    chi = torch.randn(int(DEGREES), *shape, generator=generator).square().mean(dim=0).sqrt()
    rows = torch.randn(shape[0], 1, generator=generator).mul(0.3).exp()
    inputs = torch.randn(1, shape[1], generator=generator).mul(0.2).exp()
    return normal / chi * rows * inputs / math.sqrt(shape[1])


def embedding(generator: Generator) -> Tensor:
    """Independent weights, and 32 directions that take a third of the energy."""
    shape, rank = (VOCABULARY, HIDDEN), 32
    noise = matrix(shape, generator)
    strong = torch.randn(VOCABULARY, rank, generator=generator)
    strong = strong @ torch.randn(rank, HIDDEN, generator=generator)
    return noise + strong * (noise.norm() / strong.norm()) / math.sqrt(2)


def measure(tree: Path, checkpoint: Path, bits: float) -> dict[str, Any]:
    """Compress with the code of a checkout, in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, str(checkpoint), str(bits)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(done.stdout))


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Median CPU time for each weight, and what was made; all runs must make the same."""
    first = results[0]
    if any((r["bytes"], r["snr"]) != (first["bytes"], first["snr"]) for r in results):
        sys.exit("runs of one tree made different files")
    each = [1e6 * r["seconds"] / r["weights"] for r in results]
    facts = {"weights": first["weights"], "bytes": first["bytes"], "snr": first["snr"]}
    facts["cpu_us_per_weight"] = statistics.median(each)
    return {**facts, "least": min(each), "most": max(each), "peak_kib": first["peak"]}


if __name__ == "__main__":
    main()
