# SPDX-License-Identifier: Apache-2.0
"""The tensors that rate-distortion benchmarks measure on, and the Gaussian bound of each.

A tensor of more than `MOST_WEIGHTS` is represented by evenly spaced rows of it, for every method.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.lib import minilm
from benchmarks.lib.places import data_folder
from tersor.coding.rate import distortion_bound
from tersor.tiling import Tiling, as_float32, window_size

LEAST_WEIGHTS, MOST_WEIGHTS = 10_000, 1 << 20
INPUTS = 32
"""Inputs of the tile that the bound is computed with, where a weight has no window."""

SEED = 0
SOURCES = ("gaussian", "resnet20", "mobilenet", "minilm")


@dataclass(frozen=True, eq=False)
class Sample:
    """A tensor to compress: all of a weight, or some of its rows."""

    source: str
    name: str
    weight: Tensor
    rows: int
    """Rows of the whole weight."""

    @property
    def numel(self) -> int:
        return self.weight.numel()

    @property
    def rates(self) -> tuple[float, ...]:
        """Bits per weight that are asked for."""
        return (0.5, 1, 2, 3) if self.source == "gaussian" else (1, 2, 3)

    def facts(self) -> dict[str, object]:
        """What identifies the tensor in a result."""
        shape = list(self.weight.shape)
        return {"source": self.source, "tensor": self.name, "shape": shape, "rows": self.rows}


def samples(source: str) -> Iterator[Sample]:
    """All tensors of a source that have two axes and more than `LEAST_WEIGHTS` weights."""
    if source == "gaussian":
        generator = torch.Generator().manual_seed(SEED)
        weight = torch.randn(1024, 1024, generator=generator)
        yield Sample(source, "independent 1024x1024", weight, len(weight))
        return
    with safe_open(checkpoint(source), "pt") as file:
        for name in sorted(file.keys()):
            shape = file.get_slice(name).get_shape()
            if len(shape) >= 2 and math.prod(shape) > LEAST_WEIGHTS:
                weight = file.get_tensor(name)
                if weight.is_floating_point():
                    yield Sample(source, name, some_rows(as_float32(weight)), len(weight))


def checkpoint(source: str) -> Path:
    """File of the weights of a network."""
    if source == "minilm":
        return minilm.model_folder() / "model.safetensors"
    names = {"resnet20": "resnet20_cifar10", "mobilenet": "mobilenetv1_075_224_imagenet"}
    return data_folder() / f"{names[source]}.safetensors"


def some_rows(weight: Tensor) -> Tensor:
    """Evenly spaced rows with at most `MOST_WEIGHTS` weights, or all."""
    count = min(len(weight), MOST_WEIGHTS // math.prod(weight.shape[1:]))
    return weight[torch.arange(count) * len(weight) // count].contiguous()


def signal_to_noise(weight: Tensor, rebuilt: Tensor) -> float:
    """10 log10(sum W^2 / sum (W - V)^2) in dB."""
    noise = float((weight.double() - rebuilt.double()).square().sum())
    return 10 * math.log10(float(weight.double().square().sum()) / noise)


def bound(weight: Tensor, bits: float) -> float:
    """Highest SNR in dB that Gaussian tiles of these second moments allow at bits per weight.

    The tile is fixed: the kernel window where there is one, else `INPUTS` consecutive inputs, the
    last tile of a row padded with zeros.
    """
    shape = tuple(weight.shape)
    size = window_size(shape) if window_size(shape) > 1 else min(INPUTS, math.prod(shape[1:]))
    tiles = Tiling(shape, size).split(weight).double()
    spectrum = torch.linalg.eigvalsh(tiles @ tiles.T / tiles.shape[1]).numpy()
    error = distortion_bound(spectrum, bits * weight.numel() / tiles.numel()) * tiles.numel()
    return 10 * math.log10(float(weight.double().square().sum()) / error)
