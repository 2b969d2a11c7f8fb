"""Pack dense weights of convolutions for inference.

There are four ways of packing. For images whose channels come first in memory:

- Winograd's algorithm (Lavin and Gray, 2016, arXiv 1509.09308), for windows of 3 x 3 and stride 1.
  It computes tiles of 2 x 2 or 4 x 4 pixels at once, with 16 products for 4 pixels or 36 for 16
  pixels instead of 9 for each pixel. The packed weight has (size + 2)² / 9 times as many numbers.
- Depthwise convolutions, one channel at a time.

For images that lie channels last, in as many bytes as the dense weight, which they replace:

- The product of the inputs of each window and a matrix in panels, as in `tersor.kernels.panels`.
- Depthwise convolutions, all channels of a pixel at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InputError
from tersor.kernels import panels

SIZES = (2, 4)
"""Sizes of the tiles of pixels of Winograd's algorithm."""

DEPTHWISE, LAST, DEPTHWISE_LAST = 0, 1, -1
"""Numbers that stand for a size where there are no tiles: depthwise, and the two ways for images
that lie channels last."""

_PANEL = 6
"""Number of rows that are multiplied at once."""

_TRANSFORMS = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}


class Layout(NamedTuple):
    """The sizes of a packed dense weight."""

    rows: int
    channels: int
    kernel_h: int
    kernel_w: int
    groups: int
    size: int
    """Size of the tiles of pixels, or one of `DEPTHWISE`, `LAST` and `DEPTHWISE_LAST`."""

    @property
    def is_last(self) -> bool:
        """Whether images lie channels last."""
        return self.size in (LAST, DEPTHWISE_LAST)

    @property
    def inputs(self) -> int:
        """Number of inputs of a window."""
        return self.channels * self.kernel_h * self.kernel_w


def pack(weight: Tensor, size: int) -> tuple[list[Tensor], Layout]:
    """Return a dense weight packed for ``tersor::conv2d``: tensors and sizes.

    Parameters
    ----------
    weight
        Weight, shape (rows, channels, 3, 3) for tiles; (rows, 1, height, width) for a depthwise
        convolution.
    size
        One of `SIZES`, or `DEPTHWISE`, `LAST` or `DEPTHWISE_LAST`.
    """
    rows, channels, height, width = weight.shape
    real = weight.to(torch.float32).contiguous()
    if size == LAST:
        (matrix,), _ = panels.pack(real.permute(0, 2, 3, 1).flatten(1))
        return [matrix], Layout(rows, channels, height, width, 1, size)
    if size == DEPTHWISE_LAST:
        return [real.flatten(1).T.contiguous()], Layout(rows, rows, height, width, rows, size)
    if size == DEPTHWISE:
        return [real], Layout(rows, rows, height, width, rows, 0)
    g = torch.tensor(_TRANSFORMS[size], dtype=torch.float64)
    tiles = torch.einsum("ai,bj,rcij->abrc", g, g, real.to(torch.float64)).flatten(0, 1)
    tiles = F.pad(tiles, (0, 0, 0, -rows % _PANEL)).to(torch.float32)
    packed = tiles.reshape(len(tiles), -1, _PANEL, channels).transpose(2, 3).contiguous()
    return [real, packed], Layout(rows, channels, 3, 3, 1, size)


def weight_of(packed: Sequence[Tensor], layout: Layout) -> Tensor:
    """Return the dense weight that was packed, float32."""
    rows, channels, *kernel, _, size = layout
    if size == LAST:
        matrix = panels.matrix_of(panels.Packed(*packed), panels.Layout(rows, layout.inputs))
        return matrix.reshape(rows, *kernel, channels).permute(0, 3, 1, 2).contiguous()
    if size == DEPTHWISE_LAST:
        return packed[0].T.reshape(rows, 1, *kernel).contiguous()
    return packed[0].to(torch.float32)


def check(packed: Sequence[Tensor], layout: Layout, place: Sequence[int]) -> None:
    """Raise an `InputError` for tensors, sizes or windows that the kernels do not support.

    The kernels do not check them.
    """
    rows, channels, *kernel, groups, size = layout
    sizes = [rows * channels // groups * kernel[0] * kernel[1]]
    if size == LAST:
        panels.check(panels.Packed(*packed), panels.Layout(rows, layout.inputs))
        sizes = [packed[0].numel()]
        if groups != 1:
            raise InputError(f"panels are for one group, not {layout}")
    elif size in SIZES:
        sizes.append((size + 2) ** 2 * -(-rows // _PANEL) * _PANEL * channels)
        steps = (*place[:2], *place[6:])
        if kernel != [3, 3] or groups != 1 or steps != (1, 1, 1, 1):
            raise InputError(f"tiles are for 3 x 3 windows of stride 1, not {layout} at {place}")
    elif size not in (DEPTHWISE, DEPTHWISE_LAST) or not rows == channels == groups:
        raise InputError(f"not a depthwise convolution: {layout}")
    if [t.numel() for t in packed] != sizes or not all(
        t.dtype == torch.float32 and t.is_contiguous() for t in packed
    ):
        raise InputError(f"packed tensors do not fit {layout}; take both from `pack`")
