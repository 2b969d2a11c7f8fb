# SPDX-License-Identifier: Apache-2.0
"""How accurate is ResNet-20 on CIFAR-10 at 1/10 to 1/32 of its size, without training?

Each model is written to a file, loaded back in a fresh process and evaluated on the whole test set.
Normalisation statistics are matched to the dense model on 1,024 training images, for all methods.
Ours is measured calibrated on the same images, and data-free; baselines get the same bytes.

    python -m benchmarks.quality.resnet20_cifar10 [--ratios 10 16 20 32]
        [--methods calibrated tersor]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import tersor
from benchmarks.lib import cifar10, parts, record
from benchmarks.lib.fresh import output_of
from tersor.compression import baselines
from tersor.storage.checkpoint import open_checkpoint

CALIBRATION_IMAGES = 1024
METHODS = ("calibrated", "tersor", "vector_quantization", "scalar")


def evaluate_file(path: Path) -> float:
    """Accuracy of the model in a file, in a fresh process."""
    return float(output_of(__spec__.name, "--evaluate", path))


def matched(state: dict[str, torch.Tensor], images: torch.Tensor) -> cifar10.ResNet20:
    """Model of these weights with its normalisation matched to the dense one."""
    dense = cifar10.pretrained_resnet20()
    model = cifar10.pretrained_resnet20()
    model.load_state_dict(state, strict=False)
    tersor.match_normalization(model, dense, [images])
    return model


def ours(
    target: int, images: torch.Tensor, folder: Path, calibration: tersor.Calibration | None
) -> tuple[int, float]:
    """Our file: its size on disk and its accuracy."""
    path, asked = folder / "model.tersor", target
    while True:
        model = cifar10.pretrained_resnet20()
        tersor.compress(model, target_size=asked, calibration=calibration)
        tersor.match_normalization(model, cifar10.pretrained_resnet20(), [images])
        size = tersor.save(model, path).nbytes
        if size <= target:
            return path.stat().st_size, evaluate_file(path)
        asked -= size - target  # matched statistics compress a few bytes worse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratios", type=float, nargs="+", default=[10, 16, 20, 32])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--evaluate", type=Path, help="print the accuracy of one file")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.evaluate:
        model = tersor.load(options.evaluate, cifar10.ResNet20())
        print(cifar10.accuracy(model, *cifar10.images("test")))
        return
    kept = [r for r in record.load("resnet20_cifar10") if r["method"] in METHODS]
    rows = measure(options.ratios, options.methods)
    rows += [r for r in kept if r["method"] not in options.methods]
    show(rows)
    record.write(
        "resnet20_cifar10",
        rows,
        measures=parts.MODELS,
        seed=0,
        calibration_images=CALIBRATION_IMAGES,
    )


def measure(ratios: list[float], methods: Sequence[str]) -> list[dict[str, object]]:
    source = open_checkpoint(cifar10.resnet20_path())
    images = cifar10.images("train")[0][:CALIBRATION_IMAGES]
    dense = cifar10.accuracy(cifar10.pretrained_resnet20(), *cifar10.images("test"))
    rows: list[dict[str, object]] = []

    def add(method: str, asked: float, size: int, top1: float) -> None:
        ratio = source.nbytes / size
        rows.append({"method": method, "asked": asked, "bytes": size, "ratio": ratio, "top1": top1})
        print(f"{method:22} {size:8} bytes  {ratio:6.2f}x  {top1:.2f} %", flush=True)

    add("fp32", 1, source.nbytes, dense)
    targets = [int(source.nbytes / ratio) for ratio in ratios]
    with tempfile.TemporaryDirectory() as folder:
        calibration = tersor.calibrate(cifar10.pretrained_resnet20(), images.split(128))
        for method, moments in (("calibrated", calibration), ("tersor", None)):
            for ratio, target in zip(ratios, targets, strict=True) if method in methods else ():
                add(method, ratio, *ours(target, images, Path(folder), moments))
    for baseline in (baselines.vector_quantization, baselines.scalar):
        if (method := baseline.__name__) in methods:
            for ratio, (size, weights) in zip(ratios, baseline(source, targets), strict=True):
                top1 = cifar10.accuracy(matched(weights, images), *cifar10.images("test"))
                add(method, ratio, size, top1)
    return rows


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title="ResNet-20, CIFAR-10 test set, no training")
    for column in ("method", "bytes", "ratio", "top-1 %"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for r in rows:
        table.add_row(str(r["method"]), str(r["bytes"]), f"{r['ratio']:.2f}", f"{r['top1']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
