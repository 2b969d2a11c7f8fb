# SPDX-License-Identifier: Apache-2.0
"""Weights that the factorization tests share."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

_DATA = Path(os.environ.get("TERSOR_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="session")
def layers() -> dict[str, Tensor]:
    """The convolutions of a trained ResNet-20."""
    path = _DATA / "resnet20_cifar10.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is missing; TERSOR_DATA names the folder with trained weights")
    return {name: w for name, w in load_file(path).items() if w.dim() == 4}


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)
