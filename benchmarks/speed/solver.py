# SPDX-License-Identifier: Apache-2.0
"""How fast is the solver? ``tersor compress`` of MobileNetV1-0.75, and k-means on the same tiles.

The command is timed in a process of its own, start of Python included, in turn with scikit-learn's
KMeans(k=256, n_init=1, max_iter=25) on every factored tensor's tiles of one kernel window, or of 8
inputs; medians of the runs.

    python -m benchmarks.speed.solver [--runs 3] [--ratio 10]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sklearn.cluster import KMeans

from benchmarks.lib import parts, record
from benchmarks.lib.places import data_folder
from tersor.compression.assembly import survey
from tersor.storage.checkpoint import Source, open_checkpoint
from tersor.tiling import Tiling, as_float32, window_size


def compress(checkpoint: Path, ratio: float, folder: Path) -> float:
    """Seconds of the command."""
    tersor = Path(sys.executable).with_name("tersor")
    command = [tersor, "compress", checkpoint, "-o", folder / "out.tersor", "--ratio", str(ratio)]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def cluster(source: Source, names: list[str]) -> float:
    """Seconds of k-means on all tensors."""
    seconds = 0.0
    for name in names:
        weight = as_float32(source.load(name))
        size = min(max(window_size(tuple(weight.shape)), 8), weight[0].numel())
        tiles = Tiling(tuple(weight.shape), size).split(weight).T.contiguous().numpy()
        start = time.perf_counter()
        KMeans(min(256, len(tiles)), n_init=1, max_iter=25, random_state=0).fit(tiles)
        seconds += time.perf_counter() - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=10)
    options = parser.parse_args()
    checkpoint = data_folder() / "mobilenetv1_075_224_imagenet.safetensors"
    source = open_checkpoint(checkpoint)
    weights = survey(source)[1]
    numel = sum(w.numel for w in weights)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.runs):
            ours.append(compress(checkpoint, options.ratio, Path(folder)))
            theirs.append(cluster(source, [w.name for w in weights]))
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"tersor compress {a:.1f} s, {numel / a:,.0f} weights per second")
    print(f"k-means {b:.1f} s; ratio {b / a:.2f}")
    rows = [{"tersor_seconds": a, "kmeans_seconds": b, "weights": numel, "ratio": options.ratio}]
    record.write("speed", rows, measures=parts.MODELS, runs=options.runs, seed=0)


if __name__ == "__main__":
    main()
