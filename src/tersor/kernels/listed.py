# SPDX-License-Identifier: Apache-2.0
"""Pack factors of a convolution for inference, as a list of the multiples that each row adds.

With tiles along the input, ``y = Z @ (C.T @ x)``: a window of the input, x, is transformed tile by
tile into numbers, called columns here, and each row of the output is a sum of integer multiples of
columns. The kernels process a block of columns at a time. A block has two tables of up to 191
multiples, which are computed once for all rows. Each row has a list of the entries that it adds, in
8 bits each; the list is short for a latent that is mostly zero or has few values. Sums are integers
of 16 bits. Each of them covers only a part of the block, with so few columns that rounding costs at
most `LOSS`. `Listed.latent` returns exactly the latent that was packed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tersor.errors import InputError
from tersor.factors import Factors
from tersor.kernels.packing import Filters, Shape, buffers
from tersor.kernels.padding import pad

LOSS = 6e-4
"""Largest relative error of a sum of 16 bits, for independent inputs; a part of a block gets
columns up to this error."""

_CAPACITY = 32766
"""Largest sum in 16 bits, without rounding."""

_TABLE = 192
"""Number of entries of each of the two tables of a block, so that they fit the fastest cache."""

_LARGEST = 64
"""Largest magnitude of a latent: one multiple by a larger integer would cost more than `LOSS`."""

_ROWS = 2**16

Reals = NDArray[np.float64]


class Layout(NamedTuple):
    """The sizes of a packed convolution, which the shapes of its tensors do not tell."""

    rows: int
    channels: int
    kernel_h: int
    kernel_w: int
    tile: int
    rank: int
    blocks: int
    parts: int

    @property
    def inputs(self) -> int:
        """Number of inputs of a row."""
        return self.channels * self.kernel_h * self.kernel_w

    @property
    def columns(self) -> int:
        """Number of transformed inputs of a row."""
        return -(-self.inputs // self.tile) * self.rank


class Tensors(NamedTuple):
    """The tensors of packed factors.

    Parameters
    ----------
    codebook
        Codebook times the scale, float32, shape (d, k).
    block
        Starts of each block, int32, shape (blocks + 1, 8): the first column of each of four parts,
        the first entry of both tables, the first run and the first code. The last row holds the
        ends of the last block.
    needs
        For each part, the scale of sums for inputs of norm 1, float32, shape (blocks, 4).
    entries
        Entries of the tables, int16, shape (entries, 2): column in the block and multiple. The
        first entry of each table is zero.
    runs
        Runs of rows with lists of the same length, int32, shape (runs, 2): quads of each row, and
        number of rows.
    order
        Numbers of the rows of each block in the order of the runs, uint16, shape (blocks, rows).
    codes
        Quads of indices of entries, row after row, uint8; each quad has two indices into each
        table.
    """

    codebook: Tensor
    block: Tensor
    needs: Tensor
    entries: Tensor
    runs: Tensor
    order: Tensor
    codes: Tensor


@dataclass(eq=False)
class Listed(Filters):
    """Factors of a convolution, as lists of multiples."""

    tensors: Tensors
    layout: Layout

    name: ClassVar[str] = "listed"
    kernel: ClassVar[str] = "convolve_listed"
    Tensors = Tensors
    Layout = Layout

    @classmethod
    def packable(cls, factors: Factors) -> bool:
        """Return whether factors can be packed: integers of a convolution in 1 or 2 dimensions."""
        return (
            factors.quantized
            and len(factors.shape) in (3, 4)
            and factors.shape[0] < _ROWS
            and factors.latent.numel() > 0
            and int(factors.latent.abs().max()) <= _LARGEST
        )

    @classmethod
    def pack(cls, factors: Factors) -> Listed:
        """Return factors of a convolution packed for the kernels.

        Parameters
        ----------
        factors
            Factors that are `packable`.
        """
        rows, rank, tiling = factors.shape[0], factors.rank, factors.tiling
        latent = factors.latent.cpu().reshape(rank, rows, tiling.tiles_per_row).permute(1, 2, 0)
        latent = latent.reshape(rows, rank * tiling.tiles_per_row)
        multiples, pairs = _entries(latent)
        # Fewer parts need less padding of lists. With more parts there are fewer blocks, and so
        # fewer conversions of sums to real numbers, each of which takes about as long as 8 quads.
        found = [_pack_parts(latent, multiples, pairs, parts) for parts in (2, 4)]
        parts = min(
            (0, 1), key=lambda i: found[i]["codes"].numel() + 32 * found[i]["order"].numel()
        )
        tensors = found[parts]
        codebook = (factors.codebook.to(torch.float32) * factors.scale).cpu().contiguous()
        kernel = (1,) * (4 - len(factors.shape)) + factors.shape[2:]
        sizes = (
            rows,
            factors.shape[1],
            *kernel,
            tiling.size,
            rank,
            len(tensors["order"]),
            2 + 2 * parts,
        )
        return cls(Tensors(codebook, **tensors), Layout(*sizes))

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Return rows, channels, height and width of the kernel, and one group."""
        rows, channels, height, width = self.layout[:4]
        return rows, channels, height, width, 1

    def arguments(self) -> tuple[int, ...]:
        """Return the numbers that the native kernel takes: sizes and buffers of the tensors."""
        return (self.layout.rows, *self.layout[4:], *buffers(*self.tensors))

    def expected(self) -> dict[str, tuple[Shape, torch.dtype]]:
        """Return shape and type of each tensor."""
        layout = self.layout
        return {
            "codebook": ((layout.tile, layout.rank), torch.float32),
            "block": ((layout.blocks + 1, 8), torch.int32),
            "needs": ((layout.blocks, 4), torch.float32),
            "entries": ((None, 2), torch.int16),
            "runs": ((None, 2), torch.int32),
            "order": ((layout.blocks, layout.rows), torch.uint16),
            "codes": ((None,), torch.uint8),
        }

    def verify(self) -> None:
        """Raise an `InputError` if tensors do not fit the layout, or are damaged.

        Kernels read and write at the places that these tensors say.
        """
        self.check()
        if not self._leads_inside():
            raise InputError(
                "the packed tensors say places outside of the weight, so they are damaged, or of "
                "another weight; load what was saved from this model, or compress again"
            )

    def _leads_inside(self) -> bool:
        packed, layout = self.tensors, self.layout
        block, entries, runs = (
            part.cpu().long() for part in (packed.block, packed.entries, packed.runs)
        )
        tables = block[:, 4:6].flatten()
        rise = (
            (block[:, :4].flatten(), layout.columns),
            (tables, len(entries)),
            (block[:, 6], len(runs)),
            (block[:, 7], packed.codes.numel()),
        )
        if not all(n[0] == 0 and n[-1] == most and (n.diff() >= 0).all() for n, most in rise):
            return False
        wide = block[:, 0].diff().repeat_interleave(2).repeat_interleave(tables[:-1].diff())
        if (entries[:, 0] < 0).any() or (entries[:, 0] >= wide).any() or (runs < 0).any():
            return False
        rows, codes = (pad(n.cumsum(0), (1, 0)) for n in (runs[:, 1], 4 * runs[:, 0] * runs[:, 1]))
        return bool(
            (tables.diff() <= _TABLE).all()
            and (rows[block[:, 6]].diff() == layout.rows).all()
            and (codes[block[:, 6]].diff() == block[:, 7].diff()).all()
            and (packed.order.cpu().to(torch.int32) < layout.rows).all()
            and (packed.codes < _TABLE).all()
        )

    def latent(self) -> Tensor:
        """Return the latent that was packed: int16, (rank, rows * tiles)."""
        packed, layout = self.tensors, self.layout
        block, runs = packed.block.long(), packed.runs.long()
        numbers = torch.arange(layout.blocks, device=block.device)
        of_run = torch.repeat_interleave(numbers, block[:, 6].diff())
        quads = torch.repeat_interleave(runs[:, 0], runs[:, 1])
        row = torch.repeat_interleave(packed.order.long().flatten(), quads)
        b = torch.repeat_interleave(torch.repeat_interleave(of_run, runs[:, 1]), quads)
        tables = block[b, 4:6].repeat_interleave(2, dim=1)
        entry = packed.entries.long()[packed.codes.long().reshape(-1, 4) + tables]
        column = (entry[:, :, 0] + block[b, :1]).flatten().clamp(max=layout.columns - 1)
        latent = torch.zeros(layout.rows, layout.columns, dtype=torch.int16, device=block.device)
        multiple = entry[:, :, 1].flatten().to(torch.int16)
        latent.index_put_((row.repeat_interleave(4), column), multiple, accumulate=True)
        tiled = latent.reshape(layout.rows, layout.columns // layout.rank, layout.rank)
        return tiled.permute(2, 0, 1).reshape(layout.rank, -1)

    def recompose(self) -> Tensor:
        """Return the dense weight, float32, shape (rows, channels, kernel_h, kernel_w)."""
        layout = self.layout
        tiles = self.tensors.codebook @ self.latent().to(torch.float32)
        rows = tiles.T.reshape(layout.rows, -1)[:, : layout.inputs]
        return rows.reshape(layout.rows, layout.channels, layout.kernel_h, layout.kernel_w)


def _pack_parts(
    latent: Tensor, multiples: list[list[int]], pairs: Tensor, parts: int
) -> dict[str, Tensor]:
    """Return all tensors but the codebook, with blocks of ``parts`` parts, by name."""
    bounds, needs = _bounds(latent, [len(m) for m in multiples], parts)
    fields: list[list[int]] = []
    entries: list[tuple[int, int]] = []
    lists: list[tuple[Tensor, Tensor, Tensor]] = []
    run = code = 0
    for start in range(0, len(bounds) - 1, parts):
        block = bounds[start : start + parts + 1]
        first, middle, last = block[0], block[parts // 2], block[-1]
        inner = [*block[1:-1], last, last][:3]
        starts = [len(entries), len(entries) + 1 + sum(len(m) for m in multiples[first:middle])]
        fields.append([first, *inner, *starts, run, code])
        for part in (range(first, middle), range(middle, last)):
            entries += [(0, 0), *((c - first, m) for c in part for m in multiples[c])]
        lists.append(_lists(pairs, multiples, block))
        run, code = run + len(lists[-1][0]), code + lists[-1][2].numel()
    fields.append([bounds[-1]] * 4 + [len(entries)] * 2 + [run, code])
    runs, orders, codes = zip(*lists, strict=True)
    return {
        "block": torch.tensor(fields, dtype=torch.int32),
        "needs": pad(torch.tensor(needs).reshape(-1, parts), (0, 4 - parts)).contiguous(),
        "entries": torch.tensor(entries, dtype=torch.int16),
        "runs": torch.cat(runs).to(torch.int32),
        "order": torch.stack(orders).to(torch.int32).to(torch.uint16),
        "codes": torch.cat(codes),
    }


def _entries(latent: Tensor) -> tuple[list[list[int]], Tensor]:
    """Return the multiples of each column, and for each element of the latent two of their numbers.

    Multiples have numbers from 1; number 0 means no multiple. A value that few rows need is the sum
    of two other multiples if there are such.
    """
    rows, columns = latent.shape
    most = int(latent.abs().max())
    shifted = (latent + most).long()
    span = 2 * most + 1
    counts = torch.bincount(
        (shifted + torch.arange(columns) * span).flatten(), minlength=columns * span
    ).reshape(columns, span)
    table = torch.zeros(2, columns, span, dtype=torch.uint8)
    often = 3 + rows // 40
    chosen: list[list[int]] = []
    places: list[tuple[int, int]] = []
    found: list[tuple[int, int]] = []
    for column, of_column in enumerate(counts.tolist()):
        present = {v: n for v, n in enumerate(of_column, -most) if n and v}
        multiples, pairs = _choose(present, often)
        places += [(column, value + most) for value in pairs]
        found += pairs.values()
        chosen.append(multiples)
    at, value_of = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).T
    table[:, at, value_of] = torch.tensor(found, dtype=torch.uint8).reshape(-1, 2).T
    return chosen, table[:, torch.arange(columns), shifted]


def _choose(counts: dict[int, int], often: int) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """Return the multiples for a table, and the numbers of the two whose sum is each value.

    Multiples have numbers from 1; number 0 means no multiple.
    """
    multiples = {value for value, count in counts.items() if count >= often}
    parts = {value: (value, 0) for value in multiples}
    for value in sorted(set(counts) - multiples, key=abs):
        found = next((m for m in multiples if value - m in multiples), None)
        if found is None:
            multiples.add(value)
            parts[value] = (value, 0)
        else:
            parts[value] = (found, value - found)
    number = {0: 0} | {value: i + 1 for i, value in enumerate(sorted(multiples))}
    return sorted(multiples), {v: (number[a], number[b]) for v, (a, b) in parts.items()}


def _bounds(latent: Tensor, entries: list[int], parts: int) -> tuple[list[int], list[float]]:
    """Return the columns between which the parts of blocks are, and the scale that each part needs.

    The last parts may be empty, to complete a block.
    """
    # numpy, since operations on small arrays are faster than on small tensors.
    sums = latent.T.abs().double().contiguous().numpy()
    squares = sums**2
    most = (_TABLE - 1) * 2 // parts
    bounds, needs, start = [0], [], 0
    energy = total = np.zeros(len(latent))
    need = count = 0.0
    for column in range(latent.shape[1]):
        more, longer = energy + squares[column], total + sums[column]
        wanted = _need(more, longer)
        error = wanted * math.sqrt((column - start + 1) / 12)
        if column > start and (error > LOSS or count + entries[column] > most):
            bounds.append(column)
            needs.append(need)
            start, count, more, longer = column, 0, squares[column], sums[column]
            wanted = _need(more, longer)
        energy, total, need, count = more, longer, wanted, count + entries[column]
    bounds.append(latent.shape[1])
    needs.append(need)
    missing = -len(needs) % parts
    return bounds + bounds[-1:] * missing, needs + [0.0] * missing


def _need(squares: Reals, sums: Reals) -> float:
    """Return the scale of sums for inputs of norm 1.

    It leaves room in the 16 bits for rounding, which adds up to half a step for each unit of the
    latent.
    """
    return math.sqrt(float(squares.max())) / (_CAPACITY - 0.51 * float(sums.max()))


def _lists(
    pairs: Tensor, multiples: list[list[int]], block: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the runs, the order and the codes of a block."""
    parts = len(block) - 1
    each = 4 // parts  # indices of each part in a quad
    slots, longest = [], torch.zeros(pairs.shape[1], dtype=torch.int64)
    for i in range(parts):
        # Make indices into the table of this part, which two of four parts share.
        start = block[0] if i < parts // 2 else block[parts // 2]
        lengths = torch.tensor([0, *(len(multiples[c]) for c in range(start, block[i + 1]))])
        before = lengths.cumsum(0)[block[i] - start : -1]
        indices = pairs[:, :, block[i] : block[i + 1]].long()
        indices = torch.where(indices > 0, indices + before, 0).permute(1, 2, 0).flatten(1)
        used = indices > 0
        indices = indices.gather(1, (~used).to(torch.uint8).argsort(dim=1, stable=True))
        longest = torch.maximum(longest, -(-used.sum(1) // each))
        slots.append(indices)
    quads = int(longest.max())
    padded = [pad(indices, (0, quads * each - indices.shape[1])) for indices in slots]
    codes = torch.cat([p.reshape(len(p), quads, each) for p in padded], dim=2)
    order = longest.argsort(stable=True)
    lengths, counts = torch.unique_consecutive(longest[order], return_counts=True)
    kept = torch.arange(quads) < longest[order][:, None]
    return (
        torch.stack([lengths, counts], dim=1),
        order,
        codes[order][kept].flatten().to(torch.uint8),
    )
