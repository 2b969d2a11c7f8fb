# SPDX-License-Identifier: Apache-2.0
"""Define the module that replaces a dense weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.factors import Factors
from tersor.tiling import Tiling


class HeldWeight(nn.Module, ABC):
    """A weight in another form; calling it returns the dense weight.

    Attributes
    ----------
    tiling
        How the weight is cut into tiles.
    dtype
        Data type of the weight; it follows `Module.to`.
    by_rows
        Whether `embed` can make single rows without the others.
    """

    tiling: Tiling
    dtype: torch.dtype
    by_rows = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the weight."""
        return self.tiling.shape

    @property
    def device(self) -> torch.device:
        """Return the device of the weight."""
        return next(iter([*self.parameters(), *self.buffers()])).device

    @abstractmethod
    def to_factors(self) -> Factors:
        """Return factors that recompose to exactly the result of `forward`, without zero rows.

        Rows of the latent that hold only zeros are left out.
        """

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the result of `nn.Linear` with this weight.

        Parameters
        ----------
        x
            Input of shape (..., in_features).
        bias
            Bias of shape (out_features,), or None.
        """
        return F.linear(x, self(), bias)

    def embed(self, index: Tensor) -> Tensor:
        """Return the rows of the weight at ``index``; if ``by_rows`` is set, make no others."""
        return F.embedding(index, self())

    def convolve(self, module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
        """Return the result of the convolution ``module`` with this weight.

        Parameters
        ----------
        module
            Its stride, padding, dilation, groups and bias are used.
        x
            Input of the convolution.
        """
        y: Tensor = module._conv_forward(x, self(), module.bias)
        return y


_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types by their size in bytes."""


def moved(fn: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
    """Return a tensor after a function that moves or converts tensors, moved but not converted.

    Parameters
    ----------
    fn
        Moves or converts tensors.
    part
        The tensor.
    """
    if part.is_floating_point():
        return fn(part.view(_WHOLE[part.element_size()])).view(part.dtype)
    return fn(part)
