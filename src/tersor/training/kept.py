"""Biases and normalisation weights with as few digits as the weights bear.

A file holds them in bfloat16, which is a tenth of it where weights have a bit each; but errors as
small as those of seven binary digits do not show beside the errors of such weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tersor.errors import BudgetError
from tersor.files import archive_of
from tersor.storage.archive import Plain
from tersor.training.groups import factored_weights

_DIGITS = (3, 7)
"""Fewest binary digits behind the first one, and those of bfloat16."""

_MORE = 2
"""Digits beyond the bits of a weight: errors about 20 dB below those of the weights."""

Before = list[tuple[nn.Parameter, Tensor]]
"""Parameters, and what they were."""


def digits(model: nn.Module, size: float) -> int:
    """Binary digits for a file of so many bytes."""
    weights = sum(math.prod(w.shape) for w in factored_weights(model).values())
    return min(max(math.ceil(8 * size / weights) + _MORE, _DIGITS[0]), _DIGITS[1])


@torch.no_grad()
def coarsen(model: nn.Module, size: float) -> Before:
    """Round what is trained, and held at 16 bits, to the digits for a file of so many bytes."""
    kept, changed, entries = digits(model, size), [], archive_of(model).entries
    for name, parameter in model.named_parameters():  # those of factors have other names
        content = entries[name].content if name in entries else None
        halved = isinstance(content, Plain) and content.values.dtype != parameter.dtype
        if halved and parameter.requires_grad:
            changed.append((parameter, parameter.detach().clone()))
            parameter.copy_(rounded(parameter, kept))
    return changed


@torch.no_grad()
def restore(before: Before) -> None:
    """Let parameters be what they were."""
    for parameter, value in before:
        parameter.copy_(value)


@contextmanager
def coarsened(model: nn.Module, size: float) -> Iterator[None]:
    """The model with these digits, for good unless the budget cannot be reached."""
    before = coarsen(model, size)
    try:
        yield
    except BudgetError:
        restore(before)
        raise


def rounded(values: Tensor, kept: int) -> Tensor:
    """Nearest numbers of so many binary digits behind the first one."""
    mantissa, exponent = torch.frexp(values.float())
    scale = 2.0 ** (kept + 1)
    return torch.ldexp((mantissa * scale).round() / scale, exponent).to(values.dtype)
