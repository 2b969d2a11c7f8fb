# SPDX-License-Identifier: Apache-2.0
"""What is shipped to run a compressed network with ONNX Runtime, and does it compute the same?

Bytes of the graph without weights (also gzipped), of the map and of the file; the largest
difference of the outputs from those of torch on CIFAR-10's test images, and how many of these each
classifies correctly.

    python -m benchmarks.quality.onnx_export
"""

from __future__ import annotations

import gzip
import importlib.metadata
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tersor
from benchmarks.lib import parts, record
from benchmarks.lib.cifar10 import ResNet20, images
from benchmarks.lib.networks import ResNet8, raw_images
from benchmarks.lib.places import ROOT

ARTIFACTS = ROOT / "benchmarks" / "artifacts"
CASES: dict[str, tuple[type[nn.Module], Callable[[str], tuple[Tensor, Tensor]]]] = {
    "resnet20_20x": (ResNet20, images),
    "resnet20_40x": (ResNet20, images),
    "resnet8_20x": (ResNet8, raw_images),
    "resnet8_40x": (ResNet8, raw_images),
}
BATCH = 500


def by_torch(model: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in pixels.split(BATCH)])


def by_onnx_runtime(session: Any, pixels: Tensor) -> Tensor:
    found = [session.run(None, {"x": part.numpy()})[0] for part in pixels.split(BATCH)]
    return torch.cat([torch.from_numpy(part) for part in found])


def measure(name: str, folder: Path) -> record.Row:
    """Export one file, and run it with both."""
    network, load = CASES[name]
    pixels, labels = load("test")
    pixels = pixels.contiguous()
    source = ARTIFACTS / f"{name}.tersor"
    done = tersor.export.onnx(network(), pixels[:2], folder, file=source)
    wanted = by_torch(tersor.load(source, network()).eval(), pixels)
    found = by_onnx_runtime(tersor.export.onnx_session(folder), pixels)
    zipped = gzip.compress((folder / "skeleton.onnx").read_bytes(), mtime=0)
    return {
        "name": name,
        **done.nbytes,
        "skeleton.onnx, gzipped": len(zipped),
        "difference": float((found - wanted).abs().max()),
        "relative difference": float((found - wanted).abs().max() / wanted.abs().max()),
        "correct, torch": int((wanted.argmax(1) == labels).sum()),
        "correct, ONNX Runtime": int((found.argmax(1) == labels).sum()),
    }


def main() -> None:
    """Measure all networks."""
    rows = []
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder) / name))
        print(rows[-1])
    packages = ("onnx", "onnxscript", "onnxruntime")
    versions = {package: importlib.metadata.version(package) for package in packages}
    record.write("onnx_export", rows, measures=parts.EXPORT, packages=versions)


if __name__ == "__main__":
    main()
