# SPDX-License-Identifier: Apache-2.0
"""Train unfactored parameters as real numbers that are rounded as in the file.

These parameters are biases, normalisation parameters and weights of a few elements.

The fewer bits the weights have, the fewer digits these parameters need, if they are rounded during
training: a ResNet-8 of 8 kB that is rounded to 4 digits only after it is trained loses 1.6 points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tersor.nn.sharded import local
from tersor.training.groups import factored_weights

DIGITS = 8
"""Binary digits of bfloat16, which is their type in the file."""

_MORE = 3
"""Number of binary digits that these parameters have more than the weights have bits: they are few,
and each acts on a whole channel. In a ResNet-20 of 27 kB 4 digits instead of 8 save 3 % of the
bytes."""


def digits_of(weights: int, target: int) -> int:
    """Return the binary digits that suit a file of ``target`` bytes with so many weights."""
    return min(math.ceil(8 * target / max(weights, 1)) + _MORE, DIGITS)


def digits_for(model: nn.Module, target: int) -> int:
    """Return the binary digits that suit a model and its budget in bytes."""
    weights = sum(math.prod(weight.shape) for weight in factored_weights(model).values())
    return digits_of(weights, target)


def round_to(values: Tensor, digits: int) -> Tensor:
    """Return the values rounded to a number of binary digits each."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 2**digits).round(), exponent - digits)


class Rounding:
    """Rounding of parameters, which an optimizer changes as real numbers.

    Parameters
    ----------
    parameters
        Parameters to round. If they are sharded, each process rounds its part.
    digits
        Binary digits of each number.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], digits: int) -> None:
        self._parameters, self._digits = list(parameters), digits
        self._real: list[Tensor] = []
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Store the present parameters as the real numbers, and round the parameters."""
        values = [local(p.detach()) for p in self._parameters]
        self._real = [value.clone() for value in values]
        for value in values:
            value.copy_(round_to(value, self._digits))

    @contextmanager
    def real(self) -> Iterator[None]:
        """Restore the real numbers, so that they can be changed; round them at the end."""
        with torch.no_grad():
            for parameter, real in zip(self._parameters, self._real, strict=True):
                local(parameter.detach()).copy_(real)
        yield
        self.begin()
