# SPDX-License-Identifier: Apache-2.0
"""Peak memory of loading into a model, of saving it, or of decompressing, in this process (Linux).

Prints JSON: bytes of the dense tensors, and how far the resident memory rose above what it was
before. The model, of the names and shapes in the file, is there before it is loaded.

    python -m benchmarks.lib.storage_memory load|save|decompress MODEL.tersor
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

import tersor
from tersor.io import export_safetensors


def empty_model(path: Path) -> nn.Module:
    """Modules with parameters of the names, shapes and types in the file."""
    model = nn.Module()
    for tensor in tersor.inspect(path).tensors:
        owner, (*folders, name) = model, tensor.name.split(".")
        for folder in folders:
            if folder not in owner._modules:
                owner.add_module(folder, nn.Module())
            owner = owner.get_submodule(folder)
        if tensor.dtype == "F32":
            owner.register_parameter(name, nn.Parameter(torch.rand(tensor.shape)))
        else:
            owner.register_buffer(name, torch.ones(tensor.shape, dtype=torch.int64))
    return model


def kilobytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def main() -> None:
    what, path = sys.argv[1], Path(sys.argv[2])
    model = None if what == "decompress" else empty_model(path)
    if what == "save":
        tersor.load(path, model)
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back
    if what == "load":
        tersor.load(path, model)
    elif what == "save":
        tersor.save(model, path.with_name("again.tersor"))
    else:
        export_safetensors(path, path.with_name("again.safetensors"))
    risen = 1024 * (kilobytes("VmHWM") - before)
    dense = sum(t.numel * (4 if t.dtype == "F32" else 8) for t in tersor.inspect(path).tensors)
    print(json.dumps({"dense_bytes": dense, "risen_bytes": risen}))


if __name__ == "__main__":
    main()
