# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and the networks that the benchmarks evaluate on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lib.places import CACHE, data_folder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def unpacked() -> Path:
    """Folder of CIFAR-10's binary files, made on first use."""
    folder = CACHE / "cifar-10-batches-bin"
    if not (folder / "batches.meta.txt").is_file():
        unpack = data_folder() / "unpack_cifar10.py"
        subprocess.run([sys.executable, unpack, CACHE], check=True)
    return folder


def images(split: str) -> tuple[Tensor, Tensor]:
    """Normalised images (n, 3, 32, 32), channels last, and labels: "test", or the first training
    batch of 10,000 for "train".
    """
    folder = unpacked()
    name = {"test": "test_batch.bin", "train": "data_batch_1.bin"}[split]
    raw = np.fromfile(folder / name, np.uint8).reshape(-1, 3073)
    pixels = torch.from_numpy(raw[:, 1:].reshape(-1, 3, 32, 32).copy()).float() / 255
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    labels = torch.from_numpy(raw[:, 0].astype(np.int64))
    return pixels.contiguous(memory_format=torch.channels_last), labels


class Block(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples by 2 and pads channels with zeros (option A of
    He et al., 2016).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.added:
            half = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10 (He et al., 2016), 272 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def pretrained_resnet20() -> ResNet20:
    """ResNet-20 with its trained weights, for evaluation."""
    model = ResNet20()
    model.load_state_dict(load_file(resnet20_path()))
    return model.eval().to(memory_format=torch.channels_last)


def resnet20_path() -> Path:
    return data_folder() / "resnet20_cifar10.safetensors"


@torch.inference_mode()
def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    pairs = zip(pixels.split(batch), labels.split(batch), strict=True)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs)
    return 100 * right / len(labels)
