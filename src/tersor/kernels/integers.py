"""Factors with a latent of small integers, packed for inference: ``y = Z @ (C.T @ x)``.

With tiles along the input, the input is transformed tile by tile, by ``C.T``, and multiplied by the
small integers of the latent, which take 4 bits each, or 2 at positions of the tile that are nearly
always 0 or 1 in magnitude. The few integers that do not fit are escapes: differences to add.
`latent_of` gives exactly the latent that was packed.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InputError
from tersor.factors import Factors

MANY = 8
"""Vectors from which on tables of sums are faster than products of bytes: measured, 384 to 4096."""

KERNEL = "Integers"

_COLUMN_BITS = 19
_GROUP = 64
"""Integers of a row are padded to a multiple of this, those of 4 and of 2 bits alike."""

_ROWS = 16
"""Rows are padded to a multiple of this, whose codes lie side by side."""

_LARGEST = 4000
"""Magnitude up to which the difference of an escape fits in its 13 bits."""

ESCAPE_COST = 1 / 64
"""Share of escapes among integers of 2 bits that makes them slower than 4 bits."""


class Layout(NamedTuple):
    """Sizes of a packed matrix: what its tensors do not tell."""

    rows: int
    inputs: int
    tile: int
    padded_rank: int
    wide: int
    narrow: int

    @property
    def tiles(self) -> int:
        """Tiles of a row."""
        return -(-self.inputs // self.tile)

    def columns(self, positions: int) -> int:
        """Padded integers of a row at so many positions of the tile."""
        return -(-positions * self.tiles // _GROUP) * _GROUP

    @property
    def bytes_wide(self) -> int:
        """Bytes of a row at 4 bits."""
        return self.columns(self.wide) // 2


class Packed(NamedTuple):
    """Packed factors of a matrix: tensors and sizes, as ``tersor::linear`` takes them.

    Parameters
    ----------
    codebook
        float32, shape (d, padded rank): columns of the codebook times the scale, positions of 4
        bits first.
    codes
        uint8, shape (rows / 16, bytes of a row / 4, 16, 4); see ``csrc/kernels/integers.hpp``.
    reach
        float32: for each 16 bytes of a row, the largest norm of the integers of any row.
    starts
        int32, shape (rows + 1,): where the escapes of each row begin.
    escapes
        int32: column + difference * 2 ** 19.
    """

    codebook: Tensor
    codes: Tensor
    reach: Tensor
    starts: Tensor
    escapes: Tensor


def packable(factors: Factors) -> bool:
    """Whether these factors can be packed: integers, of a matrix that is not too wide."""
    tiles = factors.tiling.tiles_per_row
    return (
        factors.quantized
        and len(factors.shape) == 2
        and factors.rank * tiles < 2**_COLUMN_BITS
        and int(factors.latent.abs().max() if factors.latent.numel() else 0) <= _LARGEST
    )


def pack(factors: Factors) -> tuple[Packed, Layout, Tensor]:
    """Factors in the layout of the kernels, and the order of their positions.

    Parameters
    ----------
    factors
        Factors that are `packable`.
    """
    latent, rows = factors.latent, factors.shape[0]
    order, wide = _widths(latent)
    layout = Layout(rows, factors.shape[1], factors.tiling.size, _up(factors.rank, 8), wide,
                    factors.rank - wide)  # fmt: skip
    codebook = torch.zeros(layout.tile, layout.padded_rank)
    codebook[:, : factors.rank] = factors.codebook[:, order].to(torch.float32) * factors.scale
    parts = [
        _pack_part(latent[order[:wide]], layout, 4),
        _pack_part(latent[order[wide:]], layout, 2),
    ]
    codes = torch.cat([part[0] for part in parts], dim=1).contiguous()
    reach = torch.cat([part[1] for part in parts])
    starts, escapes = _join_escapes([part[2] for part in parts], layout)
    return Packed(codebook, codes, reach, starts, escapes), layout, order


def check(packed: Packed, layout: Layout) -> None:
    """Refuse tensors that are not of the sizes and types of this layout: kernels do not look."""
    expected = _expected(layout)
    for name, tensor in packed._asdict().items():
        size, dtype = expected.get(name, (tensor.numel(), torch.int32))
        if tensor.numel() != size or tensor.dtype != dtype or not tensor.is_contiguous():
            raise InputError(
                f"packed tensor {name!r} has {tensor.numel()} elements of {tensor.dtype}, needed "
                f"are {size} of {dtype}, contiguous; take it from `pack`, with its layout"
            )


@cache
def _expected(layout: Layout) -> dict[str, tuple[int, torch.dtype]]:
    wide, narrow = layout.columns(layout.wide), layout.columns(layout.narrow)
    return {
        "codebook": (layout.tile * layout.padded_rank, torch.float32),
        "codes": (_up(layout.rows, _ROWS) * (wide // 2 + narrow // 4), torch.uint8),
        "reach": (wide // 32 + narrow // 64, torch.float32),
        "starts": (layout.rows + 1, torch.int32),
    }


def unpack(packed: Packed, layout: Layout, rows: Tensor) -> Tensor:
    """Integers of some rows, exactly: int16, shape (len(rows), rank, tiles), in packed order.

    Parameters
    ----------
    rows
        Numbers of rows, int64, one axis.
    """
    codes = packed.codes[rows // _ROWS, :, rows % _ROWS]
    quads = layout.bytes_wide // 4
    parts = [
        _unpack_part(codes[:, :quads], layout, 4, layout.wide),
        _unpack_part(codes[:, quads:], layout, 2, layout.narrow),
    ]
    integers = torch.cat(parts, dim=1)
    starts, counts = packed.starts[rows], packed.starts[rows + 1] - packed.starts[rows]
    row = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
    # the escapes of each row, one after the other
    before = (counts.cumsum(0) - counts)[row]
    escapes = packed.escapes[starts[row] + torch.arange(len(row), device=rows.device) - before]
    column = (escapes & (2**_COLUMN_BITS - 1)).long()
    difference = (escapes >> _COLUMN_BITS).to(torch.int16)
    integers = integers.index_put((row, column), difference, accumulate=True)
    return integers.reshape(len(rows), layout.wide + layout.narrow, layout.tiles)


def rows_of(packed: Packed, layout: Layout, rows: Tensor) -> Tensor:
    """Some rows of the matrix, float32, shape (len(rows), inputs); no other is touched."""
    latent = unpack(packed, layout, rows).to(torch.float32)
    tiles = latent.transpose(1, 2) @ packed.codebook[:, : latent.shape[1]].T
    return tiles.flatten(1)[:, : layout.inputs]


def latent_of(packed: Packed, layout: Layout) -> Tensor:
    """The latent that was packed, positions in packed order: int16, (rank, rows * tiles)."""
    rows = torch.arange(layout.rows, device=packed.codes.device)
    latent = unpack(packed, layout, rows).transpose(0, 1)
    return latent.reshape(latent.shape[0], layout.rows * layout.tiles)


def _widths(latent: Tensor) -> tuple[Tensor, int]:
    """Positions, those that need 4 bits first, and how many these are."""
    if not latent.shape[1]:
        return torch.arange(latent.shape[0]), latent.shape[0]
    at_2 = ((latent < -1) | (latent > 2)).float().mean(dim=1)
    at_4 = ((latent < -8) | (latent > 7)).float().mean(dim=1)
    is_wide = at_2 - at_4 > ESCAPE_COST
    return torch.cat([is_wide.nonzero(), (~is_wide).nonzero()]).flatten(), int(is_wide.sum())


def _pack_part(latent: Tensor, layout: Layout, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, reach and escapes (row, column, difference) of positions of so many bits."""
    positions = latent.shape[0]
    least, most = (-8, 7) if bits == 4 else (-1, 2)
    integers = latent.reshape(positions, layout.rows, layout.tiles).transpose(0, 1)
    integers = integers.reshape(layout.rows, positions * layout.tiles)
    fitting = integers.clamp(least, most)
    different = (integers != fitting).nonzero()
    differences = (integers - fitting)[different[:, 0], different[:, 1]]
    columns, padded = layout.columns(positions), _up(layout.rows, _ROWS)
    padding = (0, columns - fitting.shape[1], 0, padded - layout.rows)
    fitting = F.pad(fitting.to(torch.int8), padding)
    each = 8 // bits
    blocks = fitting.reshape(padded, columns // (16 * each), 16 * each).float()
    reach = blocks.norm(dim=2).amax(dim=0)
    quads = (fitting - least).reshape(padded // _ROWS, _ROWS, columns // (4 * each), each, 4)
    codes = torch.zeros((*quads.shape[:3], 4), dtype=torch.uint8)
    for i in range(each):
        codes |= quads[:, :, :, i].to(torch.uint8) << (bits * i)
    return codes.transpose(1, 2), reach, torch.cat([different, differences[:, None].long()], dim=1)


def _unpack_part(codes: Tensor, layout: Layout, bits: int, positions: int) -> Tensor:
    """Integers at all positions of so many bits, without escapes: int16, (rows, columns)."""
    shifts = torch.arange(0, 8, bits, device=codes.device, dtype=torch.uint8)
    integers = (codes[:, :, None] >> shifts[:, None]) & (2**bits - 1)
    kept: Tensor = integers.flatten(1)[:, : positions * layout.tiles].to(torch.int16)
    return kept - (8 if bits == 4 else 1)


def _join_escapes(parts: list[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    parts[1][:, 1] += layout.wide * layout.tiles
    row, column, difference = torch.cat(parts).T
    order = row.argsort(stable=True)
    escapes = (column + (difference << _COLUMN_BITS))[order].to(torch.int32)
    starts = F.pad(row.bincount(minlength=layout.rows).cumsum(0), (1, 0)).to(torch.int32)
    return starts, escapes


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
