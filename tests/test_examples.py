# SPDX-License-Identifier: Apache-2.0
"""The ImageNet recipes run from dense weights to a file that is evaluated, in a few steps."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import tersor

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("TERSOR_DATA", ROOT.parent / "shared" / "data"))
IMAGES = DATA / "imagenet_dev911_224.npz"
WEIGHTS = DATA / "mobilenetv1_075_224_imagenet.safetensors"

pytest.importorskip("accelerate", reason="fine-tuning needs accelerate")
pytest.importorskip("PIL", reason="images need Pillow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Some of the images in ImageFolder layout, all 1000 classes having a folder."""
    if not IMAGES.exists():
        pytest.skip(f"{IMAGES} is missing; TERSOR_DATA names the folder with labelled images")
    root, content = tmp_path_factory.mktemp("imagenet"), np.load(IMAGES)
    for split in ("train", "val"):
        for label in range(1000):
            (root / split / f"{label:04}").mkdir(parents=True)
    stream, bounds = content["jpeg"].tobytes(), pairwise(content["offsets"])
    for number, ((a, b), label) in enumerate(zip(bounds, content["y"], strict=True)):
        split = "train" if number < 64 else "val"
        if number < 96:
            (root / split / f"{label:04}" / f"{number}.jpg").write_bytes(stream[a:b])
    return root


def run(name: str, folder: Path, weights: Path, output: Path, size: str, images: int) -> float:
    """Run a recipe for four steps; gives the accuracy that it prints."""
    options = ["--epochs", 2, "--steps", 2, "--batch-size", 4, "--workers", 0]
    options += ["--calibration", images]
    files = ["--weights", weights, "--output", output, "--size", size]
    command = [sys.executable, ROOT / "examples" / f"{name}.py", folder, *files, *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"top-1 of the file: (\S+) %", done.stdout)
    assert found, done.stdout
    return float(found[1])


def architecture(name: str) -> torch.nn.Module:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module(name).RECIPE.build()
    finally:
        sys.path.pop(0)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute on an idle machine
def test_mobilenet_keeps_most_of_its_accuracy(tmp_path, folder):
    if not WEIGHTS.exists():
        pytest.skip(f"{WEIGHTS} is missing; TERSOR_DATA names the folder with trained weights")
    output = tmp_path / "m.tersor"
    assert run("imagenet_mobilenetv1", folder, WEIGHTS, output, "1.2MB", 32) > 50
    assert output.stat().st_size <= 1_200_000
    assert (output.with_suffix(".checkpoint")).exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_resnet18_runs_with_random_weights(tmp_path, folder):
    torch.manual_seed(0)
    torch.save(architecture("imagenet_resnet18").state_dict(), tmp_path / "dense.pth")
    output = tmp_path / "m.tersor"
    run("imagenet_resnet18", folder, tmp_path / "dense.pth", output, "1.54MiB", 0)
    assert output.stat().st_size <= 1.54 * 2**20
    tersor.load(output, architecture("imagenet_resnet18"))


def test_resnet18_has_the_names_and_the_size_of_torchvision():
    state = architecture("imagenet_resnet18").state_dict()
    assert sum(t.numel() for n, t in state.items() if "running" not in n) - 20 == 11_689_512
    assert state["layer4.1.conv2.weight"].shape == (512, 512, 3, 3)
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert {"layer2.0.downsample.1.running_var", "fc.bias", "bn1.weight"} <= state.keys()
