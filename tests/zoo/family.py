# SPDX-License-Identifier: Apache-2.0
"""An architecture of the zoo, and models of it with any weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[[], dict[str, Any]]
"""Makes the arguments of ``forward``, by name."""


@dataclass(frozen=True)
class Family:
    """How a small model of an architecture is made and called.

    Parameters
    ----------
    build
        Makes the model, with the weights that its library begins with.
    inputs
        Makes arguments for it.
    library
        Package that is needed.
    kind
        Name of the class.
    warned
        Pattern of a warning that `tersor.compress` gives, since some weights stay as they are.
    refused
        Pattern of the message with which `tersor.compress` refuses it; None if it works.
    ratio
        How many times smaller it is to become; of tiny models much is header.
    dense_tolerance
        Most that outputs may differ by, as a share of the largest, where torch loads the dense
        tensors instead: it has other ways, with sums in another order, for dense attention and for
        weights in the order channels_last.
    """

    build: Callable[[], nn.Module]
    inputs: Inputs
    library: str
    kind: str
    warned: str | None = None
    refused: str | None = None
    ratio: float = 4
    dense_tolerance: float = 1e-5

    def is_installed(self) -> bool:
        """Whether it can be made here."""
        return importlib.util.find_spec(self.library) is not None


def make(family: Family, seed: int) -> nn.Module:
    """A model of which no floating-point tensor is that of another seed.

    Libraries begin with zeros and ones in biases and norms: that such a tensor was forgotten in
    loading would not be noticed.
    """
    torch.manual_seed(seed)
    model = family.build().eval()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or torch.nn.parameter.is_lazy(tensor):
            continue
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.mul_(1 + 0.2 * torch.rand(tensor.shape)).add_(0.02 * torch.randn(tensor.shape))
        elif name.endswith("num_batches_tracked"):
            tensor.add_(seed)
    return model


def arguments(family: Family) -> dict[str, Any]:
    """The same in each call."""
    torch.manual_seed(1234)
    return family.inputs()


def outputs(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    """All tensors that a model returns; what it draws at random is always the same."""
    torch.manual_seed(4321)
    with torch.no_grad():
        return _tensors(model(**inputs))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []


def tokens(rows: int, length: int) -> Tensor:
    """Random tokens of a vocabulary of 80, none of them special."""
    return torch.randint(3, 80, (rows, length))


def image(size: int) -> Tensor:
    """Two random images."""
    return torch.randn(2, 3, size, size)
