"""The dense weight of a matrix for inference, in the order of the kernels."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from tersor.factors import Factors
from tersor.kernels import panels
from tersor.nn.convolution import Convolution, is_plain
from tersor.nn.frozen import FrozenWeight, KernelWeight, dense, gone


class PanelWeight(KernelWeight):
    """The dense weight of a linear layer, or of a convolution of windows of one pixel.

    It is held in this order only, in as many bytes as the dense weight.
    """

    mode = "dense, packed"
    is_dense = True
    way: ClassVar = panels

    def __init__(self, factors: Factors, dtype: torch.dtype, gain: Tensor | None = None) -> None:
        FrozenWeight.__init__(self, factors, dtype)
        self._hold(*panels.pack(dense(factors, gain).flatten(1).cpu()))

    @classmethod
    def takes(cls, module: nn.Module, factors: Factors) -> bool:
        """Whether this form is one for such a module."""
        if isinstance(module, nn.Linear):
            return True
        return (
            is_plain(module)
            and module.groups == 1
            and set(module.kernel_size) == {1}
            and (isinstance(module.padding, str) or not any(module.padding))
        )

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``: made for whoever reads it."""
        matrix = panels.matrix_of(cast(panels.Packed, self.packed), cast(panels.Layout, self.layout))
        return matrix.reshape(self.shape).to(self.dtype)

    def to_factors(self) -> Factors:
        """Not possible."""
        raise gone()

    def convolve(self, module: Convolution, x: Tensor) -> Tensor:
        """What a convolution of windows of one pixel computes: a product for each pixel.

        Images lie channels last then, and so does what it gives.
        """
        spatial = len(module.kernel_size)
        if x.dim() - spatial not in (1, 2):
            return super().convolve(module, x)  # torch says what is wrong
        if max(module.stride) > 1:
            x = x[(..., *(slice(None, None, step) for step in module.stride))]
        return self.linear(x.movedim(-spatial - 1, -1), module.bias).movedim(-1, -spatial - 1)
