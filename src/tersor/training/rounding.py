"""Parameters that are not factored: trained as real numbers, computed with as the file has them.

These are biases, normalisation parameters and weights of a few elements.

The fewer bits weights have, the fewer digits these need, as long as training knows of it: where a
ResNet-8 of 8 kB is rounded to 4 digits only when it is trained, that costs 1.6 points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tersor.io import archive_of
from tersor.nn import state
from tersor.nn.sharded import local
from tersor.storage.archive import Archive, Plain
from tersor.training.groups import factored_weights

DIGITS = 8
"""Binary digits of bfloat16, in which the file has these parameters."""

_MORE = 3
"""Binary digits that they have more than weights have bits: there are few of them, and each counts
for a channel. In a ResNet-20 of 27 kB 4 digits instead of 8 save 3 % of the bytes."""


def digits_of(weights: int, target: int) -> int:
    """Binary digits that suit a file of so many bytes for so many weights."""
    return min(math.ceil(8 * target / max(weights, 1)) + _MORE, DIGITS)


def digits_for(model: nn.Module, target: int) -> int:
    """Binary digits that suit a budget of a model."""
    weights = sum(math.prod(weight.shape) for weight in factored_weights(model).values())
    return digits_of(weights, target)


def round_to(values: Tensor, digits: int) -> Tensor:
    """Numbers of so many binary digits each."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 2**digits).round(), exponent - digits)


def rounded(model: nn.Module) -> set[str]:
    """Names of the trained parameters of which the file has fewer digits than the model."""
    return _rounded(model, archive_of(model))


@torch.no_grad()
def round_kept(model: nn.Module, digits: int) -> None:
    """Let tensors that are no factors be what the file has of them; those that train, rounded."""
    archive = archive_of(model)
    fewer = _rounded(model, archive)
    for name, value in state(model).items():
        content = archive.entries[archive.original(name)].content
        if isinstance(value, Tensor) and isinstance(content, Plain):
            value.copy_(round_to(value, digits) if name in fewer else content.values)


def _rounded(model: nn.Module, archive: Archive) -> set[str]:
    names = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and name in archive.entries:
            content = archive.entries[archive.original(name)].content
            if isinstance(content, Plain) and content.values.dtype != parameter.dtype:
                names.add(name)
    return names


class Rounding:
    """Parameters that are rounded, but for while they are changed as real numbers.

    Parameters
    ----------
    parameters
        Which are; of those that are sharded each process rounds its part.
    digits
        Binary digits of each number.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], digits: int) -> None:
        self._parameters, self._digits = list(parameters), digits
        self._real: list[Tensor] = []
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Take the parameters as they are for the real numbers, and round them."""
        values = [local(p.detach()) for p in self._parameters]
        self._real = [value.clone() for value in values]
        for value in values:
            value.copy_(round_to(value, self._digits))

    @contextmanager
    def real(self) -> Iterator[None]:
        """Let them be the real numbers, which may be changed, in between."""
        with torch.no_grad():
            for parameter, real in zip(self._parameters, self._real, strict=True):
                local(parameter.detach()).copy_(real)
        yield
        self.begin()
