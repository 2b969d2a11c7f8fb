# SPDX-License-Identifier: Apache-2.0
"""How much memory do compressing and decompressing take, for models of several sizes?

Synthetic Llamas (`benchmarks.lib.llama`), sharded safetensors of bfloat16, are compressed without
data by ``tersor compress``, and given back by ``tersor decompress``, each in a process of its own.
The figures are the largest resident memory of these processes, as the kernel reports it when they
end, and their CPU time, in one thread. Files are removed after each size; a size needs about five
bytes of disk for each weight. Rows of sizes that are not run stay in the results.

    python -m benchmarks.speed.memory [--sizes 30M 100M] [--bits 2.5] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib import llama, parts, record
from benchmarks.lib.places import ROOT

USUAL = ["30M", "100M"]


class Used(NamedTuple):
    """What a process has used."""

    peak: int
    """Largest resident memory, in bytes."""
    seconds: float
    """CPU time, of user and system."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=llama.SIZES, default=USUAL)
    parser.add_argument("--bits", type=float, default=2.5)
    parser.add_argument("--folder", type=Path, help="where models are written for a while")
    options = parser.parse_args()
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            row = measure(Path(folder), size, options.bits)
        print(row, flush=True)
        record.merge(
            "memory", [row], lambda r: r["weights"], measures=parts.MODELS, threads=1, seed=0
        )


def measure(folder: Path, size: str, bits: float) -> dict[str, Any]:
    """Compress and decompress a model of one size in a folder."""
    model, small, dense = folder / "model", folder / "model.tersor", folder / "dense.safetensors"
    weights = llama.write(model, llama.SIZES[size])
    asked = ["--bits-per-weight", str(bits)]
    compressed = used("compress", str(model), "-o", str(small), *asked)
    decompressed = used("decompress", str(small), "-o", str(dense))
    return {
        "size": size,
        "weights": weights,
        "bits": bits,
        "bytes": small.stat().st_size,
        "idle_bytes": used("--version").peak,
        "compress_bytes": compressed.peak,
        "compress_seconds": compressed.seconds,
        "decompress_bytes": decompressed.peak,
        "decompress_seconds": decompressed.seconds,
    }


def used(*arguments: str) -> Used:
    """Run a command of tersor in one thread, and return what it has used."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tersor", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"tersor {arguments[0]} ended with {process.returncode}")
    return Used(1024 * usage.ru_maxrss, usage.ru_utime + usage.ru_stime)


if __name__ == "__main__":
    main()
