"""What a module holds in the place of a dense weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.factors import Factors
from tersor.tiling import Tiling


class HeldWeight(nn.Module, ABC):
    """A weight in another form; calling it gives the dense weight.

    Attributes
    ----------
    tiling
        How the weight is cut into tiles.
    dtype
        Data type of the weight; follows `Module.to`.
    """

    tiling: Tiling
    dtype: torch.dtype
    by_rows = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.tiling.shape

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(iter([*self.parameters(), *self.buffers()])).device

    @abstractmethod
    def to_factors(self) -> Factors:
        """Factors that recompose to exactly what `forward` returns, rows of zeros left out."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What `nn.Linear` computes with this weight."""
        return F.linear(x, self(), bias)

    def embed(self, index: Tensor) -> Tensor:
        """Some rows of the weight; where ``by_rows`` is set, without making the others."""
        return F.embedding(index, self())

    def convolve(self, module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
        """What this convolution computes with this weight."""
        y: Tensor = module._conv_forward(x, self(), module.bias)
        return y


_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Types of integers by their bytes."""


def moved(fn: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
    """Apply a function that moves or converts tensors to one that is only to be moved."""
    if part.is_floating_point():
        return fn(part.view(_WHOLE[part.element_size()])).view(part.dtype)
    return fn(part)
