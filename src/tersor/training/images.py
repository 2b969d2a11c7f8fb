# SPDX-License-Identifier: Apache-2.0
"""Load labelled images from arrays, from CIFAR-10's own files, or from a folder for each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from tersor.errors import InputError, MissingExtraError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

_RECORD = 1 + 3 * 32 * 32
"""Bytes of an image in CIFAR-10's binary files: its label, then three planes."""

_MARGIN = 8
"""Images are shifted by up to this fraction (1/8) of their height: 4 pixels of 32, as is usual for
CIFAR."""


@dataclass(frozen=True)
class Look:
    """Conversion of images to inputs of a model.

    Parameters
    ----------
    size
        Height and width, in pixels, to which image files are scaled and cropped.
    mean, std
        Mean and standard deviation by which pixels from 0 to 1 are normalised: one number, or one
        for each channel.
    augmented
        Whether images are flipped and shifted at random.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmented: bool

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return inputs (n, c, h, w) in float32 for pixels (n, c, h, w) in uint8."""
        images = (shifted(flipped(pixels)) if self.augmented else pixels).float() / 255
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images and their labels, loaded one batch at a time.

    Parameters
    ----------
    read
        Function that returns the pixels of the images with the given numbers, uint8 (n, c, h, w).
    labels
        Class numbers, int64 (n,).
    look
        Conversion of the pixels to inputs.
    """

    def __init__(self, read: Callable[[Sequence[int]], Tensor], labels: Tensor, look: Look) -> None:
        self.read, self.labels, self.look = read, labels, look

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        return self.look(self.read(numbers)), self.labels[numbers]

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([number])
        return images[0], labels[0]


def open_images(path: Path, look: Look) -> Images:
    """Return the images of an ``.npz`` archive, of CIFAR-10's ``.bin`` files, or of a folder.

    Parameters
    ----------
    path
        An ``.npz`` archive with the arrays ``x`` and ``y``, a ``.bin`` file of CIFAR-10, a folder
        of such files, or a folder that has a subfolder of images for each class.
    look
        Conversion of the pixels to inputs.

    Returns
    -------
    Images
        The images with their labels.

    Raises
    ------
    InputError
        If the path holds none of these, or a file is damaged.
    """
    if path.is_file() and path.suffix == ".npz":
        return _archive(path, look)
    if path.is_file() and path.suffix == ".bin":
        return _binary([path], look)
    if path.is_dir():
        files = sorted(path.glob("data_batch_*.bin"))
        return _binary(files, look) if files else _folder(path, look)
    raise InputError(
        f"{path} is no data: an .npz archive with arrays x and y, CIFAR-10 .bin files, a folder "
        "with a subfolder of images for each class, or module:callable is needed"
    )


def loader_of(images: Images, batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader of the images.

    Parameters
    ----------
    images
        Images; those that are augmented are for training.
    batch_size
        Number of images of a batch.

    Returns
    -------
    DataLoader
        For training, shuffled batches that all have the same size. Otherwise all images in their
        order.

    Raises
    ------
    InputError
        If there are fewer images for training than a batch has.
    """
    training = images.look.augmented
    if training and len(images) < batch_size:
        raise InputError(
            f"there are {len(images)} images, fewer than a batch of {batch_size}; give a smaller "
            "batch size"
        )
    return DataLoader(
        images,
        batch_size,
        shuffle=training,
        drop_last=training,
        collate_fn=lambda batch: batch,  # `Images` returns complete batches
    )


def _archive(path: Path, look: Look) -> Images:
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        pixels, labels = arrays["x"], arrays["y"]
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{path} is damaged, or no archive of images: it needs the arrays x, uint8 of shape "
            "(n, height, width, channels) or (n, channels, height, width), and y, n class numbers"
        ) from None
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or labels.shape != pixels.shape[:1]:
        raise InputError(
            f"{path} holds x of {pixels.dtype} {pixels.shape} and y of shape {labels.shape}; uint8 "
            "images in four axes and as many labels are needed"
        )
    if pixels.shape[-1] in (1, 3) and pixels.shape[1] not in (1, 3):
        pixels = pixels.transpose(0, 3, 1, 2)
    return _in_memory(pixels, labels, look)


def _binary(files: Sequence[Path], look: Look) -> Images:
    for file in files:
        if file.stat().st_size % _RECORD or not file.stat().st_size:
            raise InputError(
                f"{file} has {file.stat().st_size} bytes, no multiple of {_RECORD}: no CIFAR-10 "
                "binary file"
            )
    raw = np.concatenate([np.fromfile(f, np.uint8).reshape(-1, _RECORD) for f in files])
    return _in_memory(raw[:, 1:].reshape(-1, 3, 32, 32), raw[:, 0], look)


def _in_memory(pixels: NDArray[np.uint8], labels: NDArray[np.generic], look: Look) -> Images:
    tensor = torch.from_numpy(np.ascontiguousarray(pixels))
    return Images(
        lambda numbers: tensor[list(numbers)], torch.from_numpy(labels.astype(np.int64)), look
    )


def _folder(path: Path, look: Look) -> Images:
    classes = sorted(p for p in path.iterdir() if p.is_dir())
    files = [
        (file, label)
        for label, folder in enumerate(classes)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise InputError(
            f"{path} holds no images; a subfolder for each class, with {', '.join(_SUFFIXES)} "
            "files, or CIFAR-10's data_batch_*.bin are needed"
        )
    labels = torch.tensor([label for _, label in files])
    return Images(
        lambda numbers: torch.stack([_open(files[i][0], look.size) for i in numbers]), labels, look
    )


def _open(path: Path, size: int) -> Tensor:
    """Return the centre (3, size, size) of an image whose shorter side is scaled to ``size``."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtraError("images need Pillow: pip install 'tersor[finetune]'") from None
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from None
    scale = size / min(image.size)
    width, height = (max(size, round(n * scale)) for n in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    square = image.resize((width, height), Image.Resampling.BICUBIC).crop(
        (left, top, left + size, top + size)
    )
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def flipped(images: Tensor) -> Tensor:
    """Return the images (n, c, h, w), of which about half, chosen at random, are mirrored."""
    chosen = torch.rand(len(images)) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def shifted(images: Tensor) -> Tensor:
    """Return the images (n, c, h, w), each shifted by its own random number of pixels.

    Pixels that come from outside of the image are black.
    """
    count, _, height, width = images.shape
    margin = max(1, height // _MARGIN)
    padded = F.pad(images, (margin,) * 4)
    y, x = torch.randint(0, 2 * margin + 1, (2, count, 1))
    rows, columns = torch.arange(height) + y, torch.arange(width) + x
    numbers = torch.arange(count)[:, None, None]
    moved = padded[numbers, :, rows[:, :, None], columns[:, None, :]]  # (n, h, w, c)
    return moved.permute(0, 3, 1, 2)
