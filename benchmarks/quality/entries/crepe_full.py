# SPDX-License-Identifier: Apache-2.0
"""CREPE, the one that is used: 22 million weights, nearly all in convolutions of 64 x 1."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.quality.entries import Figures, crepe_tiny, pitch


def build() -> nn.Module:
    return crepe_tiny.build("full")


@cache
@torch.inference_mode()
def wanted() -> Tensor:
    return build()(pitch.spoken())


def quality(model: nn.Module) -> Figures:
    return pitch.quality(model, wanted())


ENTRY = replace(crepe_tiny.ENTRY, build=build, quality=quality)
