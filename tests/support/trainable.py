# SPDX-License-Identifier: Apache-2.0
"""A small model and data that training can be tested with in seconds."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tersor

IMAGES, CLASSES = 64, 4


class Net(nn.Sequential):
    """Two convolutions, one with normalisation, and a linear layer."""

    def __init__(self, norm: bool = True) -> None:
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
        layers += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()]
        layers.append(nn.Linear(32 * 16, CLASSES))
        super().__init__(*(layer for layer in layers if norm or not is_norm(layer)))


def is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm2d)


def data(count: int = IMAGES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images with a bright quadrant, which is their class."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    images = torch.randn(count, 1, 8, 8, generator=draw)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 1
    return images, labels


def loader(batch_size: int = 16, shuffle: bool = True, count: int = IMAGES) -> DataLoader:
    return DataLoader(TensorDataset(*data(count)), batch_size, shuffle=shuffle)


def dense(norm: bool = True) -> nn.Module:
    """The model, trained for a moment."""
    torch.manual_seed(0)
    model = Net(norm)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    images, labels = data()
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def compressed(model: nn.Module, ratio: float = 15) -> nn.Module:
    model = copy.deepcopy(model)
    tersor.compress(model, ratio=ratio)
    return model


def drifted(model: nn.Module, by: float = 0.4, seed: int = 0) -> nn.Module:
    """The model with latents moved off their grid, as by an optimizer."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("latent"):
                parameter += by * torch.randn(parameter.shape, generator=draw)
    return model


def accuracy(model: nn.Module) -> float:
    images, labels = data(200, seed=1)
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).double().mean())
