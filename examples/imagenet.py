# SPDX-License-Identifier: Apache-2.0
"""What the ImageNet recipes share: images, the steps from dense weights to a small file, options.

Images are in ImageFolder layout: ``DATA/train/CLASS/*`` and ``DATA/val/CLASS/*``, classes numbered
in the order of their names.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import tersor
from tersor.nn.load import load_weights
from tersor.storage.checkpoint import open_checkpoint

SIZE, RESIZED = 224, 256
"""Pixels of an input's side, and of the shorter side that images are scaled to for it."""

CALIBRATION = 1024
"""Images that the weights' errors are weighed by, and normalisation is matched on."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@dataclass(frozen=True)
class Recipe:
    """A network, and how it is fine-tuned.

    Parameters
    ----------
    build
        Makes it, with any weights.
    mean, std
        What pixels, from 0 to 1, are normalised with, for each channel.
    size
        Bytes of the file, unless asked otherwise.
    lr
        Learning rate of `tersor.finetune`.
    """

    build: Callable[[], nn.Module]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: str
    lr: float = 3e-4


class Folder(Dataset[tuple[Tensor, int]]):
    """Images of a folder with a subfolder for each class.

    Parameters
    ----------
    path
        The folder.
    recipe
        How inputs are normalised.
    training
        Random parts of the images, some mirrored, instead of their centres.
    """

    def __init__(self, path: Path, recipe: Recipe, training: bool) -> None:
        classes = sorted(p for p in path.iterdir() if p.is_dir())
        self.files = [
            (file, number)
            for number, folder in enumerate(classes)
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in SUFFIXES
        ]
        self.training = training
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (recipe.mean, recipe.std))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        file, label = self.files[number]
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        image = random_part(image) if self.training else centre(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std, label


def random_part(image: Image.Image) -> Image.Image:
    """A part of 8 to 100 % of the area, of an aspect from 3/4 to 4/3, mirrored or not (Szegedy et
    al., 2015).
    """
    area, aspect, left, top, mirrored = torch.rand(5).tolist()
    aspect = math.exp((2 * aspect - 1) * math.log(4 / 3))
    pixels = (0.08 + 0.92 * area) * image.width * image.height
    width = min(image.width, max(1, round(math.sqrt(pixels * aspect))))
    height = min(image.height, max(1, round(math.sqrt(pixels / aspect))))
    x, y = int(left * (image.width - width + 1)), int(top * (image.height - height + 1))
    part = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, (x, y, x + width, y + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored < 0.5 else part


def centre(image: Image.Image) -> Image.Image:
    """The centre of an image whose shorter side is scaled to 256 pixels."""
    scale = RESIZED / min(image.size)
    image = image.resize([round(scale * n) for n in image.size], Image.Resampling.BILINEAR)
    x, y = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return image.crop((x, y, x + SIZE, y + SIZE))


def main(recipe: Recipe, description: str) -> None:
    """Compress, train, save, and evaluate the file."""
    options = arguments(recipe, description)
    state = PartialState()
    start = options.output.with_suffix(".start.tersor")
    train = Folder(options.data / "train", recipe, training=True)
    dense = load_dense(recipe, options.weights)
    if state.is_main_process and not start.exists():
        compress(recipe, options, start)
    state.wait_for_everyone()
    model = tersor.load(start, dense_architecture(recipe))
    loader = DataLoader(
        train, options.batch_size, shuffle=True, drop_last=True, num_workers=options.workers
    )
    tersor.finetune(
        model,
        Part(loader, options.steps) if options.steps else loader,
        teacher=dense,
        target_size=options.size,
        epochs=options.epochs,
        lr=options.lr,
        fixed_statistics=True,
        mixed_precision=options.mixed_precision,
        checkpoint=options.output.with_suffix(".checkpoint"),
        checkpoint_interval=900,
    )
    if state.is_main_process:
        tersor.save(model, options.output)
    state.wait_for_everyone()  # torchrun stops the one that writes if another fails while it ends
    if state.is_main_process:
        print(f"{options.output}: {options.output.stat().st_size} bytes")
        print(f"top-1 of the file: {evaluate(recipe, options, state.device):.2f} %")


def arguments(recipe: Recipe, description: str) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="dense .pth or .safetensors")
    parser.add_argument("--output", type=Path, default=Path("model.tersor"))
    parser.add_argument("--size", default=recipe.size, help="bytes, such as 1.54MiB")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=256, help="of all processes together")
    parser.add_argument("--lr", type=float, default=recipe.lr)
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument("--workers", type=int, default=8, help="that load images, per process")
    parser.add_argument("--steps", type=int, help="batches of an epoch, to try the recipe out")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="images; 0: data-free")
    return parser.parse_args()


def load_dense(recipe: Recipe, path: Path) -> nn.Module:
    """The dense network."""
    model = recipe.build()
    load_weights(model, open_checkpoint(path))
    return model.eval()


def dense_architecture(recipe: Recipe) -> nn.Module:
    """The network as `compress` makes it, for its file."""
    model = recipe.build().eval()
    tersor.fold_normalization(model, torch.zeros(1, 3, SIZE, SIZE))
    return model


def compress(recipe: Recipe, options: argparse.Namespace, path: Path) -> None:
    """Write the file that training begins with."""
    model, dense = (load_dense(recipe, options.weights) for _ in range(2))
    images = Folder(options.data / "train", recipe, training=False)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    inputs = torch.stack([images[i][0] for i in order[: max(1, options.calibration)]])
    batches = inputs.split(64)
    calibration = tersor.calibrate(dense, batches) if options.calibration else None
    tersor.compress(model, target_size=options.size, calibration=calibration)
    if options.calibration:
        tersor.match_normalization(model, dense, batches)
    tersor.fold_normalization(model, inputs[:1])
    tersor.save(model, path)


class Part:
    """The first batches of a loader."""

    def __init__(self, loader: DataLoader, count: int) -> None:
        self.loader, self.count = loader, min(count, len(loader))

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        return islice(self.loader, self.count)


@torch.inference_mode()
def evaluate(recipe: Recipe, options: argparse.Namespace, device: torch.device) -> float:
    """Accuracy in percent on the validation images, of what the file holds."""
    model = tersor.load(options.output, recipe.build().eval()).to(device)
    tersor.optimize(model, "dense")
    images = Folder(options.data / "val", recipe, training=False)
    right = 0
    for inputs, labels in DataLoader(images, 64, num_workers=options.workers):
        right += int((model(inputs.to(device)).argmax(1).cpu() == labels).sum())
    return 100 * right / len(images)
