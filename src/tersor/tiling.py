"""Weight tensor <-> matrix of tiles.

A weight of shape (rows, ...) is read row by row; each row, flattened, is cut into consecutive
segments of ``size`` elements: the tiles. Because the trailing axes of a convolution weight are its
kernel window, a tile of 9 elements of a 3x3 convolution is one window, and a tile of a matrix is a
segment of inputs; no layer kind needs to be known. A row that is not a multiple of the tile size is
padded with zeros, which are dropped again on the way back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Rows = int | tuple[int, ...]
"""Weight rows of a latent; those of each slice, if it is coded in several."""

SLICE = 1 << 20
"""Weights of a slice, at least: enough for its probabilities, which start anew, to cost nothing
(below 0.1 %), and few enough for large weights to be decoded by any number of cores."""

BLOCK = 4096
"""Columns in coding order after which a trellis starts anew (docs/format.md): slices are made of
whole blocks, so that a search need not know of them."""


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

    @property
    def slice_rows(self) -> int:
        """Weight rows of a slice of the latent, but for the last; 0 if it is coded in one."""
        least = BLOCK // math.gcd(BLOCK, self.tiles_per_row)
        weights = least * self.tiles_per_row * self.size
        rows = least * -(-SLICE // weights)
        return rows if self.shape[0] >= 2 * rows else 0

    @property
    def slices(self) -> tuple[int, ...]:
        """Weight rows of each slice."""
        return slices(self.shape[0], self.slice_rows)

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


def slices(rows: int, slice_rows: int) -> tuple[int, ...]:
    """Weight rows of each slice."""
    count = rows // slice_rows if slice_rows else 1
    return tuple(slice_length(rows, slice_rows, position) for position in range(count))


def slice_length(rows: int, slice_rows: int, position: int) -> int:
    """Weight rows of one slice; the last takes what is left. With 0 all are one slice."""
    if not slice_rows:
        return rows
    is_last = position == rows // slice_rows - 1
    return slice_rows + (rows % slice_rows if is_last else 0)


def cut(latent: Tensor, rows: Rows) -> list[Tensor]:
    """The columns of each slice of a latent (k, n), in natural or in coding order."""
    if isinstance(rows, int) or len(rows) == 1:
        return [latent]
    per_row = latent.shape[1] // sum(rows)
    return list(torch.split(latent, [per_row * r for r in rows], dim=1))


def coding_order(latent: Tensor, rows: Rows) -> Tensor:
    """Latent (k, n) with, in each slice, the columns of one position of all rows side by side.

    So the coder learns of a position from neighbours, and a trellis runs along independent errors.
    """
    return _transposed(latent, rows, lambda r, per_row: (r, per_row))


def natural_order(latent: Tensor, rows: Rows) -> Tensor:
    """The inverse of `coding_order`."""
    return _transposed(latent, rows, lambda r, per_row: (per_row, r))


def _transposed(latent: Tensor, rows: Rows, axes: Callable[[int, int], tuple[int, int]]) -> Tensor:
    k, n = latent.shape
    lengths = (rows,) if isinstance(rows, int) else rows
    per_row = n // sum(lengths)
    parts = [
        part.reshape(k, *axes(r, per_row)).transpose(1, 2).reshape(k, r * per_row)
        for r, part in zip(lengths, cut(latent, rows), strict=True)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).contiguous()


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
