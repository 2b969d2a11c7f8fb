"""Dense weights of convolutions, packed for inference.

Windows of 3 x 3 and stride 1 by Winograd's algorithm (Lavin and Gray, 2016, arXiv 1509.09308):
tiles of 2 x 2 or 4 x 4 pixels at once, with 16 products for 4 pixels or 36 for 16 in the place of
9 for each; of (size + 2)² / 9 times the weights. And depthwise convolutions, a channel at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InputError

SIZES = (2, 4)
"""Sizes of tiles."""

_PANEL = 6
"""Rows that are multiplied at once."""

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
    """Sizes of a packed dense weight."""

    rows: int
    channels: int
    kernel_h: int
    kernel_w: int
    groups: int
    size: int
    """Of tiles; 0 if depthwise."""


def pack(weight: Tensor, size: int) -> tuple[list[Tensor], Layout]:
    """A dense weight in the layout of the kernels: tensors and sizes, as ``tersor::conv2d`` takes.

    Parameters
    ----------
    weight
        Shape (rows, channels, 3, 3) for tiles; (rows, 1, height, width) for a depthwise
        convolution.
    size
        One of `SIZES`; 0 for a depthwise convolution.
    """
    rows, channels, height, width = weight.shape
    real = weight.to(torch.float32).contiguous()
    if not size:
        return [real], Layout(rows, rows, height, width, rows, 0)
    g = torch.tensor(_TRANSFORMS[size], dtype=torch.float64)
    tiles = torch.einsum("ai,bj,rcij->abrc", g, g, real.to(torch.float64)).flatten(0, 1)
    tiles = F.pad(tiles, (0, 0, 0, -rows % _PANEL)).to(torch.float32)
    panels = tiles.reshape(len(tiles), -1, _PANEL, channels).transpose(2, 3).contiguous()
    return [real, panels], Layout(rows, channels, 3, 3, 1, size)


def check(packed: Sequence[Tensor], layout: Layout, place: Sequence[int]) -> None:
    """Refuse what the kernels are not for: they do not look."""
    rows, channels, *kernel, groups, size = layout
    sizes = [rows * channels // groups * kernel[0] * kernel[1]]
    if size:
        sizes.append((size + 2) ** 2 * -(-rows // _PANEL) * _PANEL * channels)
        steps = (*place[:2], *place[6:])
        if kernel != [3, 3] or groups != 1 or size not in SIZES or steps != (1, 1, 1, 1):
            raise InputError(f"tiles are for 3 x 3 windows of stride 1, not {layout} at {place}")
    elif not rows == channels == groups:
        raise InputError(f"not a depthwise convolution: {layout}")
    if [t.numel() for t in packed] != sizes or not all(
        t.dtype == torch.float32 and t.is_contiguous() for t in packed
    ):
        raise InputError(f"packed tensors do not fit {layout}; take both from `pack`")
