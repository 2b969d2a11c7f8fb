# SPDX-License-Identifier: Apache-2.0
"""Pack factors with a latent of small integers for inference: ``y = Z @ (C.T @ x)``.

With tiles along the input, the input is transformed tile by tile, by ``C.T``, and multiplied by the
small integers of the latent. Each position of the tile has integers of 2, 4, 6 or 8 bits. The lower
digits are in a section of 2 bits or in one of 4 bits. Higher digits are in one or two more sections
of 2 bits each, whose digits count 16 and 64 times. The few integers that do not fit into their bits
have escapes: differences to add. `Integers.latent` returns exactly the latent that was packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.factors import Factors
from tersor.kernels.packing import Matrix, Shape
from tersor.kernels.padding import pad

_GROUP, _LINE = 64, 16
"""The integers of a row in each section are padded to a multiple of the first number if none has
more than 4 bits, since tables of sums need that, else to a multiple of the second."""

_ROWS = 16
"""Number of rows whose codes lie side by side. Rows are padded to a multiple of it."""

_LARGEST = 4000
"""Largest magnitude of a latent that can be packed. An escape adds up to 127, so that larger
integers would take many escapes."""

_GAP = 255
"""Largest number of columns from one escape to the next."""

RANGES = {2: (-1, 2), 4: (-8, 7), 6: (-24, 39), 8: (-88, 167)}
"""Smallest and largest integer for each number of bits."""

ESCAPE_COST = 32
"""Cost of an escape in bits: it takes 16 bits, and time."""


class Layout(NamedTuple):
    """The sizes of a packed matrix, which the shapes of its tensors do not tell.

    In packed order the first ``wide`` positions take 4 bits, and the ``narrow`` positions after
    them take 2 bits. The first ``middle`` positions take 2 more bits, and the first ``top`` of
    these another 2 bits.
    """

    rows: int
    inputs: int
    tile: int
    padded_rank: int
    wide: int
    narrow: int
    middle: int
    top: int

    @property
    def tiles(self) -> int:
        """Number of tiles of a row."""
        return -(-self.inputs // self.tile)

    @property
    def sections(self) -> tuple[tuple[int, int], ...]:
        """Number of integers of a row in each section, with padding, and their bits."""
        unit = _LINE if self.middle else _GROUP
        positions = ((self.wide, 4), (self.narrow, 2), (self.middle, 2), (self.top, 2))
        return tuple((_up(p * self.tiles, unit), bits) for p, bits in positions)


class Tensors(NamedTuple):
    """The tensors of packed factors.

    Parameters
    ----------
    codebook
        Columns of the codebook in packed order, int16, shape (d, padded rank).
    scale
        Factor of the product, float32, shape (1,).
    codes
        Digits of the latent, uint8, shape (rows / 16, bytes of a row / 4, 16, 4); see
        ``csrc/kernels/integers.hpp``.
    reach
        For each 16 bytes of a row, the largest norm that the integers of any row have there,
        float32; empty if some integers take more than 4 bits.
    starts
        Number of the first escape of each row, and the number of all escapes, int32, shape (rows +
        1,).
    escapes
        Columns since the escape before plus 256 times the difference to add, int16.
    """

    codebook: Tensor
    scale: Tensor
    codes: Tensor
    reach: Tensor
    starts: Tensor
    escapes: Tensor


@dataclass(eq=False)
class Integers(Matrix):
    """Factors of a matrix, with integers of 2 to 8 bits."""

    tensors: Tensors
    layout: Layout

    name: ClassVar[str] = "integers"
    kernel: ClassVar[str] = "Integers"
    many: ClassVar[int] = 8
    """Least number of vectors for which tables of sums are faster than products of bytes, measured
    on matrices of 384 to 4096. The number is smaller where some integers take more than 4 bits, see
    ``csrc/kernels/integers.hpp``."""
    picks: ClassVar[bool] = True
    Tensors = Tensors
    Layout = Layout

    @classmethod
    def packable(cls, factors: Factors) -> bool:
        """Return whether factors can be packed: of a matrix, with integers that are not huge."""
        return (
            factors.quantized
            and len(factors.shape) == 2
            and int(factors.latent.abs().max() if factors.latent.numel() else 0) <= _LARGEST
        )

    @classmethod
    def pack(cls, factors: Factors) -> Integers:
        """Return factors packed for the kernels.

        Positions of more bits come first.

        Parameters
        ----------
        factors
            Factors that are `packable`.
        """
        rows, rank, device = factors.shape[0], factors.rank, factors.latent.device
        bits = _widths(factors.latent)
        order = bits.argsort(descending=True, stable=True)
        wide, middle, top = (int((bits >= least).sum()) for least in (4, 6, 8))
        sizes = rows, factors.shape[1], factors.tiling.size, _up(rank, 8)
        layout = Layout(*sizes, wide, rank - wide, middle, top)
        ranges = torch.tensor([RANGES[b] for b in bits[order].tolist()], dtype=torch.int16)
        least, most = ranges.reshape(-1, 2, 1).unbind(1)
        latent = factors.latent[order]
        fitting = latent.clamp(least.to(device), most.to(device))
        codebook = pad(factors.codebook[:, order], (0, layout.padded_rank - rank)).contiguous()
        scale = torch.tensor([factors.scale], dtype=torch.float32, device=device)
        escapes = _escapes(_by_rows(latent - fitting, layout))
        codes, reach = _codes(fitting, layout), _reach(fitting, layout)
        return cls(Tensors(codebook, scale, codes, reach, *escapes), layout)

    def expected(self) -> dict[str, tuple[Shape, torch.dtype]]:
        """Return shape and type of each tensor."""
        return _expected(self.layout)

    def verify(self) -> None:
        """Raise an `InputError` if tensors do not fit the layout, or escapes are damaged.

        Kernels write to the places that escapes say.
        """
        self.check()
        layout = self.layout
        starts, escapes = self.tensors.starts.cpu().long(), self.tensors.escapes.cpu().long()
        counts = starts.diff()
        fits = bool(starts[0] == 0 and starts[-1] == len(escapes) and (counts >= 0).all())
        if fits:
            last = pad((escapes & _GAP).cumsum(0), (1, 0))[starts].diff()
            columns = (layout.wide + layout.narrow) * layout.tiles
            fits = not ((counts > 0) & (last >= columns)).any()
        if not fits:
            raise InputError(
                "packed tensors 'starts' and 'escapes' say places outside of the matrix, so they "
                "are damaged, or of another matrix; load what was saved from this model, or "
                "compress again"
            )

    def unpack(self, index: Tensor) -> Tensor:
        """Return the latent of some rows exactly, in packed order: int16, (index, rank, tiles).

        Parameters
        ----------
        index
            Row numbers, int64, one axis.
        """
        layout = self.layout
        codes = self.tensors.codes[index // _ROWS, :, index % _ROWS]
        ends = list(accumulate(columns * bits // 32 for columns, bits in layout.sections))
        low, narrow, middle, top = (
            _digits(codes[:, start:end], bits)
            for start, end, (_, bits) in zip([0, *ends], ends, layout.sections, strict=False)
        )
        for digits, positions, worth in ((middle, layout.middle, 16), (top, layout.top, 64)):
            columns = positions * layout.tiles
            low[:, :columns] += worth * digits[:, :columns]
        parts = low[:, : layout.wide * layout.tiles], narrow[:, : layout.narrow * layout.tiles]
        row, column, difference = self._escapes_of(index)
        integers = torch.cat(parts, dim=1).index_put((row, column), difference, accumulate=True)
        return integers.reshape(len(index), layout.wide + layout.narrow, layout.tiles)

    def _escapes_of(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return row in ``index``, column and difference of the escapes of some rows."""
        starts, counts = self.tensors.starts[index], self.tensors.starts.diff()[index]
        row = torch.repeat_interleave(torch.arange(len(index), device=index.device), counts)
        # Gather the escapes of the wanted rows, one row after the other.
        before = counts.cumsum(0) - counts
        places = (starts - before)[row] + torch.arange(len(row), device=index.device)
        escapes = self.tensors.escapes[places]
        passed = pad((escapes & _GAP).long().cumsum(0), (1, 0))
        return row, passed[1:] - passed[before][row], escapes >> 8

    def rows_of(self, index: Tensor) -> Tensor:
        """Return some rows of the matrix, float32, shape (len(index), inputs); read no others."""
        latent = self.unpack(index).to(torch.float32)
        codebook = self.tensors.codebook[:, : latent.shape[1]].to(torch.float32)
        tiles = latent.transpose(1, 2) @ codebook.T
        return tiles.flatten(1)[:, : self.layout.inputs] * self.tensors.scale

    def latent(self) -> Tensor:
        """Return the latent that was packed, in packed order: int16, (rank, rows * tiles)."""
        rows, tiles = self.layout.rows, self.layout.tiles
        latent = self.unpack(torch.arange(rows, device=self.tensors.codes.device)).transpose(0, 1)
        return latent.reshape(latent.shape[0], rows * tiles)


@cache
def _expected(layout: Layout) -> dict[str, tuple[Shape, torch.dtype]]:
    row_bytes = sum(columns * bits // 8 for columns, bits in layout.sections)
    groups = _up(layout.rows, _ROWS) // _ROWS
    return {
        "codebook": ((layout.tile, layout.padded_rank), torch.int16),
        "scale": ((1,), torch.float32),
        "codes": ((groups, row_bytes // 4, _ROWS, 4), torch.uint8),
        "reach": ((0 if layout.middle else row_bytes // 16,), torch.float32),
        "starts": ((layout.rows + 1,), torch.int32),
        "escapes": ((None,), torch.int16),
    }


def _widths(latent: Tensor) -> Tensor:
    """Return the bits of each position of the tile, of least cost with the escapes."""
    costs = []
    for bits, (least, most) in RANGES.items():
        outside = ((latent < least) | (latent > most)).sum(dim=1, dtype=torch.int64)
        costs.append(bits + ESCAPE_COST * outside / max(1, latent.shape[1]))
    return torch.tensor(list(RANGES), device=latent.device)[torch.stack(costs).argmin(dim=0)]


def _by_rows(integers: Tensor, layout: Layout) -> Tensor:
    """Return integers (positions, rows * tiles) as (rows, positions * tiles)."""
    positions = integers.shape[0]
    by_rows = integers.reshape(positions, layout.rows, layout.tiles).transpose(0, 1)
    return by_rows.reshape(layout.rows, positions * layout.tiles)


def _codes(fitting: Tensor, layout: Layout) -> Tensor:
    """Return the bytes of all sections: the digits of 4 and 2 bits of integers that fit."""
    digits = (fitting[: layout.wide] - RANGES[8][0]).to(torch.uint8)
    parts = (
        digits & 15,
        (fitting[layout.wide :] - RANGES[2][0]).to(torch.uint8),
        digits[: layout.middle] >> 4 & 3,
        digits[: layout.top] >> 6,
    )
    sections = zip(parts, layout.sections, strict=True)
    return torch.cat(
        [_bytes(_by_rows(part, layout), *sizes) for part, sizes in sections], dim=1
    ).contiguous()


def _bytes(digits: Tensor, columns: int, bits: int) -> Tensor:
    """Return the bytes of one section, uint8, (rows / 16, lines, 16, 4); padding encodes zeros."""
    rows, padded, each = digits.shape[0], _up(digits.shape[0], _ROWS), 8 // bits
    padding = (0, columns - digits.shape[1], 0, padded - rows)
    digits = pad(digits, padding, value=-RANGES[bits][0])
    quads = digits.reshape(padded // _ROWS, _ROWS, columns // (4 * each), each, 4)
    codes = torch.zeros_like(quads[:, :, :, 0])
    for i in range(each):
        codes |= quads[:, :, :, i] << (bits * i)
    return codes.transpose(1, 2)


def _digits(codes: Tensor, bits: int) -> Tensor:
    """Return the digits that the bytes of a section encode: int16, (rows, columns)."""
    shifts = torch.arange(0, 8, bits, device=codes.device, dtype=torch.uint8)
    digits = (codes[:, :, None] >> shifts[:, None]) & (2**bits - 1)
    whole: Tensor = digits.flatten(1).to(torch.int16) + RANGES[bits][0]
    return whole


def _reach(fitting: Tensor, layout: Layout) -> Tensor:
    """Return the largest norm of any row's integers for each 16 bytes of a row."""
    if layout.middle:
        return fitting.new_empty(0, dtype=torch.float32)
    reaches = []
    parts = fitting[: layout.wide], fitting[layout.wide :]
    for part, (columns, bits) in zip(parts, layout.sections, strict=False):
        integers = _by_rows(part, layout).to(torch.float32)
        padded = pad(integers, (0, columns - integers.shape[1]))
        blocks = padded.reshape(len(padded), columns * bits // 128, 128 // bits)
        reaches.append(blocks.norm(dim=2).amax(dim=0))
    return torch.cat(reaches)


def _escapes(differences: Tensor) -> tuple[Tensor, Tensor]:
    """Return the starts and the escapes of differences (rows, columns).

    A gap or a difference that is too large for one escape takes several, one after the other.
    """
    row, column = differences.nonzero(as_tuple=True)
    amount = differences[row, column].long()
    is_next = pad(row[1:] == row[:-1], (1, 0))[: len(row)]
    gap = column - column.roll(1) * is_next
    skips, parts = gap // _GAP, -(-amount.abs() // 127)
    number = skips + parts
    of = torch.repeat_interleave(number)
    # Numbers of the escapes of a difference, from -skips: negative ones only skip columns.
    turn = torch.arange(len(of), device=of.device) - (number.cumsum(0) - parts)[of]
    moved = torch.where(turn < 0, _GAP, torch.where(turn == 0, (gap % _GAP)[of], 0))
    left = (amount.abs()[of] - 127 * turn).clamp(max=127) * (turn >= 0)
    escapes = moved + 256 * amount.sign()[of] * left
    counts = row[of].bincount(minlength=differences.shape[0])
    starts = pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    return starts, escapes.to(torch.int16)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
