# SPDX-License-Identifier: Apache-2.0
"""The other networks that the benchmarks evaluate: ResNet-8 and MobileNetV1-0.75."""

from __future__ import annotations

import io
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lib import cifar10
from benchmarks.lib.places import data_folder

IMAGENET_CALIBRATION = 256
"""Images, of 911, that are for calibration; the others are for the score."""


def same_padding(x: Tensor) -> Tensor:
    """What TensorFlow pads before a 3x3 convolution of stride 2 on even sizes: right and bottom."""
    return F.pad(x, (0, 1, 0, 1))


class Stack(nn.Module):
    """Two 3x3 convolutions; where the size changes, a 1x1 convolution as the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=2 - stride)
        self.bn1 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        if stride > 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(same_padding(x) if self.stride > 1 else x)
        y = self.bn2(self.conv2(F.relu(self.bn1(y))))
        return F.relu(y + (self.shortcut(x) if self.stride > 1 else x))


class ResNet8(nn.Module):
    """ResNet-8 of MLPerf Tiny (Banbury et al., 2021), 78 thousand parameters; pixels 0 to 255."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16, eps=1e-3)
        self.stack1, self.stack2, self.stack3 = Stack(16, 16, 1), Stack(16, 32, 2), Stack(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.stack3(self.stack2(self.stack1(x))).mean((2, 3)))


class MobileNetV1(nn.Module):
    """MobileNetV1 (Howard et al., 2017), width 0.75, 2.6 million parameters; pixels -1 to 1."""

    def __init__(self) -> None:
        super().__init__()
        widths = [24, 48, 96, 96, 192, 192, 384, 384, 384, 384, 384, 384, 768, 768]
        self.strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
        self.conv1, self.bn1 = nn.Conv2d(3, 24, 3, 2, bias=False), nn.BatchNorm2d(24, eps=1e-3)
        pairs = list(zip(widths, widths[1:], self.strides, strict=False))
        self.dw = nn.ModuleList(
            nn.Conv2d(i, i, 3, s, padding=2 - s, groups=i, bias=False) for i, _, s in pairs
        )
        self.dwbn = nn.ModuleList(nn.BatchNorm2d(i, eps=1e-3) for i, _, _ in pairs)
        self.pw = nn.ModuleList(nn.Conv2d(i, o, 1, bias=False) for i, o, _ in pairs)
        self.pwbn = nn.ModuleList(nn.BatchNorm2d(o, eps=1e-3) for _, o, _ in pairs)
        self.fc = nn.Conv2d(768, 1000, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn1(self.conv1(same_padding(x))))
        layers = zip(self.dw, self.dwbn, self.pw, self.pwbn, self.strides, strict=True)
        for dw, dwbn, pw, pwbn, stride in layers:
            x = F.relu6(dwbn(dw(same_padding(x) if stride > 1 else x)))
            x = F.relu6(pwbn(pw(x)))
        return self.fc(x.mean((2, 3), keepdim=True)).flatten(1)


CHECKPOINTS = {
    ResNet8: "resnet8_cifar10.safetensors",
    MobileNetV1: "mobilenetv1_075_224_imagenet.safetensors",
    cifar10.ResNet20: "resnet20_cifar10.safetensors",
}


def pretrained(network: type[nn.Module]) -> nn.Module:
    """One of the networks with its trained weights, for evaluation."""
    model = network()
    state = load_file(data_folder() / CHECKPOINTS[network])
    lacking = OrderedDict((n, t) for n, t in model.state_dict().items() if n not in state)
    assert all(name.endswith("num_batches_tracked") for name in lacking)
    model.load_state_dict(state | lacking)
    return model.eval().to(memory_format=torch.channels_last)


def raw_images(split: str) -> tuple[Tensor, Tensor]:
    """`cifar10.images` as ResNet-8 takes them."""
    pixels, labels = cifar10.images(split)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cifar10.MEAN, cifar10.STD))
    return 255 * (pixels * std + mean), labels


def imagenet() -> tuple[Tensor, Tensor]:
    """The 911 images of ImageNet's classes, (911, 3, 224, 224) from -1 to 1, and their labels."""
    from PIL import Image

    data = np.load(data_folder() / "imagenet_dev911_224.npz")
    bounds, stream = data["offsets"], data["jpeg"].tobytes()
    decoded = [
        np.asarray(Image.open(io.BytesIO(stream[a:b])).convert("RGB")) for a, b in pairwise(bounds)
    ]
    pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2) / 127.5 - 1
    labels = torch.from_numpy(data["y"].astype(np.int64))
    return pixels.contiguous(memory_format=torch.channels_last), labels
