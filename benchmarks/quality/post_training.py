# SPDX-License-Identifier: Apache-2.0
"""How much quality is lost at a byte budget, without training, on four networks?

ResNet-20 and ResNet-8 (CIFAR-10, whole test set), MobileNetV1-0.75 (655 labelled images) and the
sentence encoder MiniLM-L6 (Spearman correlation on the STS-B test split, times 100). Methods:

- ``tersor``: calibrated, normalisation folded, and reconstructed layer by layer;
- ``calibrated``: without the reconstruction, normalisation matched;
- ``uniform``: as calibrated, but each weight gets the same bits per weight;
- ``scalar``: scalar quantization with the same entropy coder, normalisation matched;
- ``coremltools``: its palettization with bits chosen for each weight (`palettization.py`),
  normalisation matched.

Files are written, and evaluated when loaded back in a fresh process. Rows that are there already
are not measured again.

    python -m benchmarks.quality.post_training [--networks resnet20 ...] [--methods tersor ...]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tersor
from benchmarks.lib import cifar10, minilm, networks, parts, record
from benchmarks.lib.fresh import output_of
from benchmarks.lib.peers import palettization
from benchmarks.lib.places import data_folder
from tersor.calibration.samples import call
from tersor.compression import baselines
from tersor.storage.checkpoint import open_checkpoint

NAME = "post_training"
METHODS = ("tersor", "calibrated", "uniform", "scalar", "coremltools")


@dataclass(frozen=True)
class Case:
    """A network, its calibration inputs, and its quality; higher is better."""

    path: Path
    load: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    evaluate: Callable[[nn.Module], float]
    ratios: tuple[float, ...]
    output: Callable[[Any, Any], Any] | None = None


def checkpoint(network: type[nn.Module]) -> Path:
    return data_folder() / networks.CHECKPOINTS[network]


def resnet20() -> Case:
    return Case(
        checkpoint(cifar10.ResNet20),
        lambda: networks.pretrained(cifar10.ResNet20),
        lambda: cifar10.images("train")[0][:1024],
        lambda model: cifar10.accuracy(model, *cifar10.images("test")),
        (10, 16, 20, 32),
    )


def resnet8() -> Case:
    return Case(
        checkpoint(networks.ResNet8),
        lambda: networks.pretrained(networks.ResNet8),
        lambda: networks.raw_images("train")[0][:1024],
        lambda model: cifar10.accuracy(model, *networks.raw_images("test")),
        (10, 20),
    )


def mobilenet() -> Case:
    first = networks.IMAGENET_CALIBRATION

    def evaluate(model: nn.Module) -> float:
        pixels, labels = networks.imagenet()
        return cifar10.accuracy(model, pixels[first:], labels[first:], batch=64)

    return Case(
        checkpoint(networks.MobileNetV1),
        lambda: networks.pretrained(networks.MobileNetV1),
        lambda: networks.imagenet()[0][:first],
        evaluate,
        (6, 10),
    )


def encoder() -> Case:
    return Case(
        minilm.model_folder() / "model.safetensors",
        minilm.encoder,
        lambda: minilm.batches("train", 4096),
        minilm.spearman,
        (8, 14),
        minilm.likeness,
    )


CASES = {"resnet20": resnet20, "resnet8": resnet8, "mobilenet": mobilenet, "minilm": encoder}


def evaluate_file(network: str, path: Path) -> float:
    """Quality of the model in a file, in a fresh process."""
    return float(output_of(__spec__.name, "--evaluate", path, "--networks", network))


@cache
def batches(case: Case) -> list[Any]:
    inputs = case.inputs()
    return list(inputs.split(16)) if isinstance(inputs, torch.Tensor) else inputs


@cache
def calibration(case: Case) -> tersor.Calibration:
    return tersor.calibrate(case.load(), batches(case), output=case.output)


def folded(case: Case) -> nn.Module:
    """The dense model, whose normalisation has no statistics to store."""
    model = case.load()
    if isinstance(first := batches(case)[0], torch.Tensor):
        tersor.fold_normalization(model, first[:8])
    return model


def ours(case: Case, target: int, method: str, path: Path) -> None:
    """Write a file of at most so many bytes."""
    asked = target
    while True:
        model = folded(case) if method == "tersor" else case.load()
        if method == "uniform":
            model = evenly(model, asked, calibration(case))
        else:
            tersor.compress(model, target_size=asked, calibration=calibration(case))
        if method == "tersor":
            tersor.reconstruct(model, folded(case), batches(case), target_size=target)
        else:
            tersor.match_normalization(model, case.load(), batches(case))
        size = tersor.save(model, path).nbytes
        if size <= target:
            return
        asked -= size - target  # matched statistics compress a few bytes worse


def evenly(model: nn.Module, target: int, calibration: tersor.Calibration) -> nn.Module:
    """A copy in which all factored weights have the same bits per weight, as many as fit."""
    numel = sum(p.numel() for p in model.parameters())
    bits, dense_size = 8 * target / numel, 4 * numel
    while True:
        trial = copy.deepcopy(model)
        size = tersor.compress(
            trial, target_size=dense_size, calibration=calibration, bits={"*": bits}
        ).nbytes
        if 0.99 * target <= size <= target:
            return trial
        bits *= 1 - (size - 0.995 * target) / target


def scalar(case: Case, target: int, path: Path) -> int:
    """The baseline's weights as a plain checkpoint; returns the bytes that they would take."""
    ((size, weights),) = baselines.scalar(open_checkpoint(case.path), [target])
    tersor.save(matched(case, weights), path, lossless=True)
    return size


def matched(case: Case, weights: dict[str, torch.Tensor]) -> nn.Module:
    """The model with a baseline's weights, and the normalisation that they need."""
    model = case.load()
    model.load_state_dict(weights, strict=False)
    tersor.match_normalization(model, case.load(), batches(case))
    return model


@cache
def palettizer(case: Case) -> palettization.Palettizer:
    return palettization.Palettizer(open_checkpoint(case.path), calibration(case))


def coremltools(case: Case, target: int, path: Path) -> int | None:
    """As `scalar`; None if nothing fits.

    Of two ways to weigh errors, the one whose model's outputs are closer to the dense model's on
    the calibration inputs.
    """
    fits = palettizer(case).fit(target)
    made = [(size, matched(case, weights)) for size, weights in fits]
    if not made:
        return None
    size, model = min(made, key=lambda m: distance(case, m[1]))
    tersor.save(model, path, lossless=True)
    return size


@torch.inference_mode()
def distance(case: Case, model: nn.Module) -> float:
    """Squared error of the outputs that matter, on the calibration inputs."""
    dense, total = case.load(), 0.0
    for number, batch in enumerate(batches(case)):
        both = [call(m, batch, number)[0] for m in (model, dense)]
        found, wanted = (case.output(o, batch) if case.output else o for o in both)
        total += float(((found - wanted) ** 2).sum())
    return total


BASELINES: dict[str, Callable[[Case, int, Path], int | None]] = {
    "scalar": scalar,
    "coremltools": coremltools,
}


def measure(network: str, methods: list[str], rows: list[dict[str, Any]]) -> None:
    """Add what is missing of a network to the rows."""
    case = CASES[network]()
    source_bytes = case.path.stat().st_size
    done = {(r["network"], r["method"], r["asked"]) for r in rows}

    def add(method: str, asked: float, size: int, quality: float) -> None:
        rows.append(
            {"network": network, "method": method, "asked": asked, "bytes": size}
            | {"ratio": source_bytes / size, "quality": quality}
        )
        print(f"{network:10} {method:10} {asked:5g}x {size:9} bytes {quality:.2f}", flush=True)
        record.save(NAME, rows, measures=parts.MODELS, seed=0)

    if (network, "dense", 1) not in done:
        add("dense", 1, source_bytes, case.evaluate(case.load()))
    for method in methods:
        for asked in case.ratios:
            if (network, method, asked) in done:
                continue
            with tempfile.TemporaryDirectory() as folder:
                path, target = Path(folder) / "model.tersor", int(source_bytes / asked)
                if method in BASELINES:
                    size = BASELINES[method](case, target, path)
                else:
                    ours(case, target, method, path)
                    size = path.stat().st_size
                if size is None:
                    print(f"{network:10} {method:10} {asked:5g}x does not fit", flush=True)
                    continue
                add(method, asked, size, evaluate_file(network, path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--evaluate", type=Path, help="print the quality of one file")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.evaluate:
        case = CASES[options.networks[0]]()
        print(case.evaluate(tersor.load(options.evaluate, case.load(), strict=False)))
        return
    rows = record.load(NAME)
    for network in options.networks:
        measure(network, options.methods, rows)
    record.write(NAME, rows, measures=parts.MODELS, seed=0)


if __name__ == "__main__":
    main()
