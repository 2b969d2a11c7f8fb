# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10's training images as the dense networks saw them, and what those say of each.

A view is the whole training set, each image augmented in its own way, which depends on the number
of the view alone: view e is what every run sees in its epoch e, in its own order. So a teacher's
answers to a view are computed once and kept, in ``.cache/views``, for all runs of all methods; a
teacher costs an epoch nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor
from benchmarks.lib import cifar10, networks
from benchmarks.lib.places import CACHE, data_folder
from tersor.storage.atomic import replacing

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where dense networks run, and images are."""

IMAGES, CLASSES = 50_000, 10
MARGIN = 4
"""Pixels that images are moved by at most (He et al., 2016, section 4.2)."""

ROTATION, SHIFT = 15.0, 0.1
"""Most degrees, and most of the height or width, that images of ResNet-8's training are moved by
(``train.py`` of mlcommons/tiny, image classification)."""


def cropped(pixels: Tensor, draws: Tensor) -> Tensor:
    """Flipped, and moved by up to 4 pixels, black coming in: as for ResNet-20.

    Parameters
    ----------
    pixels
        uint8 (n, 3, 32, 32).
    draws
        Random numbers from 0 to 1, (n, 4): what is done to each image.
    """
    count, _, height, width = pixels.shape
    padded = F.pad(mirrored(pixels, draws[:, 0]), (MARGIN,) * 4)
    y, x = ((2 * MARGIN + 1) * draws[:, 1:3]).long().T[..., None]
    numbers, rows, columns = (torch.arange(n, device=y.device) for n in (count, height, width))
    numbers, rows, columns = numbers[:, None, None], rows + y, columns + x
    moved = padded[numbers, :, rows[:, :, None], columns[:, None, :]]  # (n, h, w, c)
    return moved.permute(0, 3, 1, 2).float()


def turned(pixels: Tensor, draws: Tensor) -> Tensor:
    """Flipped, turned and moved, the border repeated: as for ResNet-8. See `cropped`."""
    images = mirrored(pixels, draws[:, 0]).float()
    shift = 2 * SHIFT * (2 * draws[:, 1:3] - 1)  # from -1 to 1 is the whole image
    angle = math.radians(ROTATION) * (2 * draws[:, 3] - 1)
    sine, cosine = angle.sin(), angle.cos()
    affine = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], 1)
    grid = F.affine_grid(affine.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def mirrored(pixels: Tensor, draws: Tensor) -> Tensor:
    """Images, those mirrored whose draw is below a half."""
    return torch.where(draws[:, None, None, None] < 0.5, pixels.flip(3), pixels)


@dataclass(frozen=True)
class Network:
    """A network, what its inputs look like, and how they were augmented.

    Parameters
    ----------
    build
        Makes it, with any weights.
    augment
        Of pixels from 0 to 255 and draws, to such pixels in float32.
    mean, std
        What those are normalised with.
    """

    name: str
    build: type[nn.Module]
    augment: Callable[[Tensor, Tensor], Tensor]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def path(self) -> Path:
        """Checkpoint of the dense weights."""
        return data_folder() / networks.CHECKPOINTS[self.build]

    def dense(self) -> nn.Module:
        """The dense network, for evaluation, its normalisation folded, for all methods."""
        model = networks.pretrained(self.build)
        tersor.fold_normalization(model, torch.zeros(1, 3, 32, 32))
        return model

    def inputs(self, pixels: Tensor) -> Tensor:
        """What the network takes, of pixels from 0 to 255."""
        mean, std = (pixels.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Teacher:
    """Dense networks that answer together.

    Parameters
    ----------
    networks
        Images are augmented as for the first one.
    """

    networks: tuple[Network, ...]

    @property
    def name(self) -> str:
        return "+".join(network.name for network in self.networks)

    def augment(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Pixels from 0 to 255 as all of them see them."""
        return self.networks[0].augment(pixels, draws)

    @torch.inference_mode()
    def answers(self, chunks: Iterable[Tensor]) -> Tensor:
        """The mean of their answers, on the CPU, to pixels from 0 to 255 in chunks."""
        pairs = [(network, network.dense().to(DEVICE)) for network in self.networks]
        return torch.cat(
            [torch.stack([dense(n.inputs(p)) for n, dense in pairs]).mean(0).cpu() for p in chunks]
        )


def of_255(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(255 * value for value in values)


NETWORKS = {
    n.name: n
    for n in (
        Network("resnet20", cifar10.ResNet20, cropped, of_255(cifar10.MEAN), of_255(cifar10.STD)),
        Network("resnet8", networks.ResNet8, turned),
    )
}


def training_pixels() -> tuple[Tensor, Tensor]:
    """The 50,000 training images, uint8 (n, 3, 32, 32), and their labels."""
    files = [cifar10.unpacked() / f"data_batch_{i}.bin" for i in range(1, 6)]
    raw = np.concatenate([np.fromfile(f, np.uint8).reshape(-1, 3073) for f in files])
    return torch.from_numpy(raw[:, 1:].reshape(-1, 3, 32, 32)), torch.from_numpy(raw[:, 0]).long()


class Views:
    """An iterable over batches ``(inputs, targets)`` of the view of an epoch, for `finetune`.

    Targets are (n, 11): the teacher's answers, and in the last column the class. Inputs are images
    or, where there is a GPU, what `images` makes them of there, (n, 5).

    Parameters
    ----------
    network
        Whose inputs.
    batch_size
        Images of a batch; the last ones of an epoch that fill none are left out.
    seed
        Of the order.
    count
        Images in use, the first ones; the others are for probes.
    teacher
        Who answers; by default the same network, dense.
    """

    def __init__(
        self,
        network: Network,
        batch_size: int,
        seed: int,
        count: int = IMAGES,
        teacher: Teacher | None = None,
    ) -> None:
        self.network, self.batch_size, self.seed, self.count = network, batch_size, seed, count
        self.teacher = teacher or Teacher((network,))
        pixels, self.labels = training_pixels()
        self.pixels = pixels.to(DEVICE)
        self.epoch = 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        answers, drawn = self.answers(self.epoch), self.drawn(self.epoch)
        order = torch.randperm(self.count, generator=seeded(1000 * (self.seed + 1) + self.epoch))
        for chosen in order.split(self.batch_size)[: len(self)]:
            inputs = drawn[chosen] if self.pixels.is_cuda else self.images(drawn[chosen])
            yield inputs, torch.cat([answers[chosen], self.labels[chosen, None].float()], 1)

    def images(self, drawn: Tensor) -> Tensor:
        """Inputs of the network, of rows of `drawn`."""
        return self.network.inputs(self._augmented(drawn))

    def _augmented(self, drawn: Tensor) -> Tensor:
        drawn = drawn.to(self.pixels.device, non_blocking=True)
        return self.teacher.augment(self.pixels[drawn[:, 0].long()], drawn[:, 1:])

    def drawn(self, view: int) -> Tensor:
        """The number of each image, and what is done to it in a view, (50000, 5)."""
        draws = torch.rand(IMAGES, 4, generator=seeded(view))
        return torch.cat([torch.arange(IMAGES)[:, None], draws], 1)

    def answers(self, view: int) -> Tensor:
        """Answers of the teacher to the images of a view, (n, 10)."""
        path = CACHE / "views" / f"{self.teacher.name}-{view}-{self.count}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, self._answers(view).numpy())
        return torch.from_numpy(np.load(path))

    def _answers(self, view: int) -> Tensor:
        chunks = self.drawn(view)[: self.count].split(500)
        return self.teacher.answers(self._augmented(drawn) for drawn in chunks)

    def calibration(self, count: int = 1024) -> Tensor:
        """The first images as they are, for what needs no training, on the CPU."""
        return self.network.inputs(self.pixels[:count].cpu().float())


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)
