# SPDX-License-Identifier: Apache-2.0
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
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.kernels import panels
from tersor.kernels.packing import Filters, Shape, buffers
from tersor.kernels.padding import pad

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
    def inputs(self) -> int:
        """Number of inputs of a window."""
        return self.channels * self.kernel_h * self.kernel_w


@dataclass(eq=False)
class Direct(Filters):
    """A dense weight of a convolution, packed in one of the four ways.

    There is one tensor; with tiles it is the dense weight, and the transformed one is the second.
    """

    tensors: tuple[Tensor, ...]
    layout: Layout

    name: ClassVar[str] = "direct"
    kernel: ClassVar[str] = "convolve_direct"
    Layout = Layout

    @classmethod
    def pack(cls, weight: Tensor, size: int) -> Direct:
        """Return a dense weight packed for ``tersor::conv2d``.

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
            matrix = panels.Panels.pack(real.permute(0, 2, 3, 1).flatten(1))
            return cls(matrix.tensors, Layout(rows, channels, height, width, 1, size))
        if size == DEPTHWISE_LAST:
            columns = real.flatten(1).T.contiguous()
            return cls((columns,), Layout(rows, rows, height, width, rows, size))
        if size == DEPTHWISE:
            return cls((real,), Layout(rows, rows, height, width, rows, size))
        g = torch.tensor(_TRANSFORMS[size], dtype=torch.float64)
        tiles = torch.einsum("ai,bj,rcij->abrc", g, g, real.to(torch.float64)).flatten(0, 1)
        tiles = pad(tiles, (0, 0, 0, -rows % _PANEL)).to(torch.float32)
        packed = tiles.reshape(len(tiles), -1, _PANEL, channels).transpose(2, 3).contiguous()
        return cls((real, packed), Layout(rows, channels, 3, 3, 1, size))

    @classmethod
    def of(cls, tensors: Sequence[Tensor], sizes: Sequence[int]) -> Direct:
        """Return the packed weight of tensors and sizes, not checked."""
        return cls(tuple(tensors), Layout(*sizes))

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Return rows, channels of all groups, height and width of the kernel, and groups."""
        return self.layout[:5]

    @property
    def order(self) -> torch.memory_format:
        """Return the memory format of the images that the kernels need."""
        is_last = self.layout.size in (LAST, DEPTHWISE_LAST)
        return torch.channels_last if is_last else torch.contiguous_format

    def arguments(self) -> tuple[int, ...]:
        """Return the numbers that the native kernel takes: sizes and the buffer of the weight."""
        return (self.layout.rows, self.layout.size, *buffers(self.tensors[-1]))

    def expected(self) -> dict[str, tuple[Shape, torch.dtype]]:
        """Return shapes and types, by the numbers of the tensors."""
        rows, channels, height, width, groups, size = self.layout
        shapes: dict[str, Shape]
        if size in (DEPTHWISE, DEPTHWISE_LAST):
            shape = (rows, 1, height, width) if size == DEPTHWISE else (height * width, rows)
            fits, shapes = rows == channels == groups, {"weight": shape}
        elif size == LAST:
            panel = panels.Layout(rows, self.layout.inputs)
            fits, shapes = groups == 1, {"weight": panels.shape_of(panel)}
        else:
            tiles = ((size + 2) ** 2, -(-rows // _PANEL), channels, _PANEL)
            fits = size in SIZES and (height, width, groups) == (3, 3, 1)
            shapes = {"weight": (rows, channels, height, width), "tiles": tiles}
        if not fits or len(self.tensors) != len(shapes):
            raise InputError(
                f"{len(self.tensors)} tensors and {self.layout} are of no packed weight; take both "
                "from `pack`"
            )
        return {name: (shape, torch.float32) for name, shape in shapes.items()}

    def named(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return dict(zip(("weight", "tiles"), self.tensors, strict=False))

    def check_place(self, place: Sequence[int]) -> None:
        """Raise an `InputError` for windows that the kernels do not support."""
        if self.layout.size in SIZES and (*place[:2], *place[6:]) != (1, 1, 1, 1):
            raise InputError(f"tiles are for windows of stride 1, not {self.layout} at {place}")

    def recompose(self) -> Tensor:
        """Return the dense weight that was packed, float32."""
        rows, channels, *kernel, _, size = self.layout
        if size == LAST:
            layout = panels.Layout(rows, self.layout.inputs)
            matrix = panels.Panels(panels.Tensors(*self.tensors), layout).recompose()
            return matrix.reshape(rows, *kernel, channels).permute(0, 3, 1, 2).contiguous()
        if size == DEPTHWISE_LAST:
            return self.tensors[0].T.reshape(rows, 1, *kernel).contiguous()
        return self.tensors[0].to(torch.float32)
