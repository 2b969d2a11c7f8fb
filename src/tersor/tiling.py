"""Weight tensor <-> matrix of tiles.

A weight of shape (rows, ...) is read row by row; each row, flattened, is cut into consecutive
segments of ``size`` elements: the tiles. Because the trailing axes of a convolution weight are its
kernel window, a tile of 9 elements of a 3x3 convolution is one window, and a tile of a matrix is a
segment of inputs; no layer kind needs to be known. A row that is not a multiple of the tile size is
padded with zeros, which are dropped again on the way back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Tiling:
    """How a weight of a given shape is cut into tiles.

    Parameters
    ----------
    shape
        Shape of the weight, at least one axis, no axis empty.
    size
        Elements of a tile, d; from 1 to the length of a flattened row.
    """

    shape: tuple[int, ...]
    size: int

    @property
    def row_length(self) -> int:
        """Elements of one flattened row."""
        return math.prod(self.shape[1:])

    @property
    def tiles_per_row(self) -> int:
        """Tiles that one flattened row is cut into, the last one padded."""
        return -(-self.row_length // self.size)

    @property
    def count(self) -> int:
        """Number of tiles, n."""
        return self.shape[0] * self.tiles_per_row

    @property
    def padding(self) -> int:
        """Zeros appended to each flattened row."""
        return self.tiles_per_row * self.size - self.row_length

    def split(self, weight: Tensor) -> Tensor:
        """Cut a weight of shape ``self.shape`` into tiles: a (d, n) tensor, one tile per column."""
        rows = weight.reshape(self.shape[0], self.row_length)
        return F.pad(rows, (0, self.padding)).reshape(self.count, self.size).T

    def join(self, tiles: Tensor) -> Tensor:
        """Put (d, n) tiles together again: the inverse of `split`."""
        rows = tiles.T.reshape(self.shape[0], self.tiles_per_row * self.size)
        if self.padding:
            rows = rows[:, : self.row_length]
        return rows.reshape(self.shape)


def coding_order(latent: Tensor, rows: int) -> Tensor:
    """Latent (k, n) with the columns of one position of all weight rows side by side.

    So the coder learns of a position from neighbours, and a trellis runs along independent errors.
    """
    k, n = latent.shape
    return latent.reshape(k, rows, n // rows).transpose(1, 2).reshape(k, n).contiguous()


def natural_order(latent: Tensor, rows: int) -> Tensor:
    """The inverse of `coding_order`."""
    k, n = latent.shape
    return latent.reshape(k, n // rows, rows).transpose(1, 2).reshape(k, n).contiguous()


def evenly_spaced_rows(weight: Tensor, elements: int) -> Tensor:
    """Rows of a weight, so many that they have at least ``elements`` elements, or all of them."""
    rows = weight.shape[0]
    wanted = max(1, min(rows, math.ceil(elements * rows / weight.numel())))
    return weight[torch.linspace(0, rows - 1, wanted).round().long()]


def window_size(shape: tuple[int, ...]) -> int:
    """Elements of the kernel window of a weight (out, in, *window); 1 for a matrix."""
    return math.prod(shape[2:])


def is_tileable(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape is a matrix or a kernel, and not empty."""
    return len(shape) >= 2 and math.prod(shape) > 0


def as_float32(weight: Tensor) -> Tensor:
    """Detached float32 view or copy of a weight, on its device."""
    return weight.detach().to(torch.float32)
