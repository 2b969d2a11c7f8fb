# SPDX-License-Identifier: Apache-2.0
"""Cut a weight tensor into a matrix of tiles, and join the tiles again.

A weight of shape (rows, ...) is read row by row. Each row is flattened and cut into consecutive
segments of ``size`` elements, the tiles. The last axes of a convolution weight are its kernel
window, so that a tile of 9 elements of a 3x3 convolution is one window; a tile of a matrix is a
segment of inputs. The kind of the layer need not be known. A row whose length is not a multiple of
the tile size is padded with zeros; `Tiling.join` drops them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor import _native

Rows = int | tuple[int, ...]
"""Number of weight rows of a latent; the number for each slice if the latent has several."""

SLICE = 1 << 20
"""Least number of weights in a slice. Each slice learns its probabilities again; with this many
weights that costs below 0.1 %. Large weights still have enough slices for all cores."""

BLOCK = _native.BLOCK
"""Columns in coding order after which a trellis starts again in state 0 (docs/format.md). Slices
consist of whole blocks, so that a search need not know where slices begin."""


LARGE = 1 << 24
"""Number of elements of a tensor above which it is read and factored in blocks of rows."""


class Rowwise(Protocol):
    """A tensor, in memory or in a file, whose rows are taken by indexing."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """Data type of its elements."""

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        """Return the rows of a slice, or of a tensor of row numbers."""


def row_blocks(tensor: Rowwise, most: int = LARGE) -> Iterator[Tensor]:
    """Yield consecutive rows of a tensor, of at most ``most`` elements where a row is not longer.

    Parameters
    ----------
    tensor
        Any tensor in memory, or one in a file that has an axis.
    most
        Number of elements up to which there is a single block; by default `LARGE`.
    """
    if isinstance(tensor, Tensor) and tensor.numel() <= most:
        yield tensor
        return
    step = max(1, most // max(1, math.prod(tensor.shape[1:])))
    for start in range(0, max(1, tensor.shape[0]), step):
        yield tensor[start : start + step]


@dataclass(frozen=True)
class Tiling:
    """The way in which a weight of a given shape is cut into tiles.

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
        """Number of elements of one flattened row."""
        return math.prod(self.shape[1:])

    @property
    def tiles_per_row(self) -> int:
        """Number of tiles of one flattened row; the last tile may be padded."""
        return -(-self.row_length // self.size)

    @property
    def count(self) -> int:
        """Number of tiles, n."""
        return self.shape[0] * self.tiles_per_row

    @property
    def padding(self) -> int:
        """Number of zeros that are appended to each flattened row."""
        return self.tiles_per_row * self.size - self.row_length

    @property
    def slice_rows(self) -> int:
        """Weight rows of each slice of the latent but the last; 0 if there is only one slice."""
        least = BLOCK // math.gcd(BLOCK, self.tiles_per_row)
        weights = least * self.tiles_per_row * self.size
        rows = least * -(-SLICE // weights)
        return rows if self.shape[0] >= 2 * rows else 0

    @property
    def slices(self) -> tuple[int, ...]:
        """Weight rows of each slice."""
        return slices(self.shape[0], self.slice_rows)

    def split(self, weight: Tensor) -> Tensor:
        """Return the tiles of a weight of shape ``self.shape``: (d, n), one tile per column."""
        rows = weight.reshape(self.shape[0], self.row_length)
        return F.pad(rows, (0, self.padding)).reshape(self.count, self.size).T

    def join(self, tiles: Tensor) -> Tensor:
        """Return the weight of which these are the tiles, (d, n): the inverse of `split`."""
        rows = tiles.T.reshape(self.shape[0], self.tiles_per_row * self.size)
        if self.padding:
            rows = rows[:, : self.row_length]
        return rows.reshape(self.shape)


def slices(rows: int, slice_rows: int) -> tuple[int, ...]:
    """Return the number of weight rows of each slice."""
    count = rows // slice_rows if slice_rows else 1
    return tuple(slice_length(rows, slice_rows, position) for position in range(count))


def slice_length(rows: int, slice_rows: int, position: int) -> int:
    """Return the number of weight rows of one slice.

    Parameters
    ----------
    rows
        Weight rows of all slices.
    slice_rows
        Weight rows of each slice but the last, which has all rows that are left; 0 if there is only
        one slice.
    position
        Number of the slice, from 0.
    """
    if not slice_rows:
        return rows
    is_last = position == rows // slice_rows - 1
    return slice_rows + (rows % slice_rows if is_last else 0)


def cut(latent: Tensor, rows: Rows) -> list[Tensor]:
    """Return the columns of each slice of a latent (k, n), in natural or in coding order."""
    if isinstance(rows, int) or len(rows) == 1:
        return [latent]
    per_row = latent.shape[1] // sum(rows)
    return list(torch.split(latent, [per_row * r for r in rows], dim=1))


def coding_order(latent: Tensor, rows: Rows) -> Tensor:
    """Return a latent (k, n) with its columns sorted by position within each slice.

    All columns of the first tile of every weight row come first, then those of the second tile, and
    so on. Thus the coder learns about a position from neighbouring columns, and the errors along
    the path of a trellis are independent.
    """
    return _transposed(latent, rows, lambda r, per_row: (r, per_row))


def natural_order(latent: Tensor, rows: Rows) -> Tensor:
    """Return a latent (k, n) in the order of the weight rows: the inverse of `coding_order`."""
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


def evenly_spaced_rows(weight: Rowwise, elements: int) -> Tensor:
    """Return evenly spaced rows of a weight with at least ``elements`` elements, or all rows.

    They are float32.
    """
    rows = weight.shape[0]
    wanted = max(1, min(rows, math.ceil(elements * rows / math.prod(weight.shape))))
    return as_float32(weight[torch.linspace(0, rows - 1, wanted).round().long()])


def window_size(shape: tuple[int, ...]) -> int:
    """Return the elements of the kernel window of a weight (out, in, *window); 1 for a matrix."""
    return math.prod(shape[2:])


def is_tileable(shape: tuple[int, ...]) -> bool:
    """Return whether a tensor of this shape is a matrix or a kernel, and not empty."""
    return len(shape) >= 2 and math.prod(shape) > 0


def as_float32(weight: Tensor) -> Tensor:
    """Return a detached float32 view or copy of a weight, on its device."""
    return weight.detach().to(torch.float32)
