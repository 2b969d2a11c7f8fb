"""Factors of a convolution, packed for inference: of each row a list of what it adds up.

With tiles along the input, ``y = Z @ (C.T @ x)``: a window of the input, x, is transformed tile by
tile, and what is left is a sum of integer multiples of transformed inputs: columns. They are taken
a block of columns at a time. A block has a table of up to 255 multiples, computed once for all
rows, and each row a list of the entries that it adds, in 8 bits each: for a latent that is mostly
zero or of few values these are few. Sums are integers of 16 bits; a block has two halves, so short
that rounding costs no more than `LOSS`. `latent_of` gives exactly the latent that was packed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.factors import Factors

LOSS = 6e-4
"""Relative error of a sum that columns are put together up to, if inputs are independent."""

_CAPACITY = 32766
"""Largest sum of 16 bits, but for rounding."""

_HALF = 127
"""Entries of a half of a block: with those of the other, and zero, 8 bits tell them apart."""

_LARGEST = 8000
"""Largest magnitude of a latent: a multiple must not be lost in 16 bits."""

_ROWS = 2**16


class Layout(NamedTuple):
    """Sizes of a packed convolution: what its tensors do not tell."""

    rows: int
    channels: int
    kernel_h: int
    kernel_w: int
    tile: int
    rank: int
    blocks: int

    @property
    def inputs(self) -> int:
        """Inputs of a row."""
        return self.channels * self.kernel_h * self.kernel_w

    @property
    def columns(self) -> int:
        """Transformed inputs of a row."""
        return -(-self.inputs // self.tile) * self.rank


class Packed(NamedTuple):
    """Packed factors of a convolution: tensors, as ``tersor::conv2d`` takes them.

    Parameters
    ----------
    codebook
        float32, shape (d, k): the codebook times the scale.
    block
        int32, shape (blocks + 1, 6): first, middle and last column, first entry, run and code; the
        last says where the one before ends.
    needs
        float32, shape (blocks, 2): of both halves, the scale of sums for inputs of norm 1.
    entries
        int16, shape (entries, 2): column in the block and multiple; the first of a block is zero.
    runs
        int32, shape (runs, 3): indices in both halves of each row, and number of rows.
    order
        uint16, shape (blocks, rows): the rows in the order of the runs.
    codes
        uint8: indices of entries, row after row, those of the first half first.
    """

    codebook: Tensor
    block: Tensor
    needs: Tensor
    entries: Tensor
    runs: Tensor
    order: Tensor
    codes: Tensor


_TYPES = (torch.float32, torch.int32, torch.float32, torch.int16, torch.int32, torch.uint16,
          torch.uint8)  # fmt: skip


def packable(factors: Factors) -> bool:
    """Whether these factors can be packed: integers, of a convolution in one or two dimensions."""
    return (
        factors.quantized
        and len(factors.shape) in (3, 4)
        and factors.shape[0] < _ROWS
        and factors.latent.numel() > 0
        and int(factors.latent.abs().max()) <= _LARGEST
    )


def pack(factors: Factors) -> tuple[Packed, Layout]:
    """Factors in the layout of the kernels.

    Parameters
    ----------
    factors
        Factors that are `packable`.
    """
    rows, rank, tiling = factors.shape[0], factors.rank, factors.tiling
    latent = factors.latent.reshape(rank, rows, tiling.tiles_per_row).permute(1, 2, 0)
    latent = latent.reshape(rows, rank * tiling.tiles_per_row).cpu()
    multiples, lists = _entries(latent)
    bounds, needs = _halves(latent, [len(of_column) for of_column in multiples])
    bounds += bounds[-1:] * (len(bounds) % 2 == 0)  # the last block may have one half only
    blocks = (len(bounds) - 1) // 2
    needs = torch.tensor(needs + [0.0] * (2 * blocks - len(needs))).reshape(blocks, 2)
    fields, entries, runs, orders, codes = [], [], [], [], []
    sizes = [0, 0, 0]
    for b in range(blocks):
        first, middle, last = bounds[2 * b : 2 * b + 3]
        fields.append([first, middle, last, *sizes])
        of_block = [(0, 0)] + [
            (c - first, value) for c in range(first, last) for value in multiples[c]
        ]
        found = _rows_of(lists, multiples, (first, middle, last))
        for kept, part in zip((runs, orders, codes), found, strict=True):
            kept.append(part)
        entries += of_block
        sizes = [len(entries), sizes[1] + len(found[0]), sizes[2] + len(found[2])]
    fields.append([bounds[-1]] * 3 + sizes)
    codebook = (factors.codebook.to(torch.float32) * factors.scale).cpu().contiguous()
    packed = Packed(
        codebook,
        torch.tensor(fields, dtype=torch.int32),
        needs.to(torch.float32),
        torch.tensor(entries, dtype=torch.int16),
        torch.cat(runs).to(torch.int32),
        torch.stack(orders).to(torch.int32).to(torch.uint16),
        torch.cat([*codes, torch.zeros(4, dtype=torch.uint8)]),  # read four at once
    )
    kernel = (1,) * (4 - len(factors.shape)) + factors.shape[2:]
    layout = Layout(rows, factors.shape[1], *kernel, tiling.size, rank, blocks)
    return packed, layout


def check(packed: Packed, layout: Layout) -> None:
    """Refuse tensors that are not of the sizes and types of this layout: kernels do not look."""
    sizes = {
        "codebook": layout.tile * layout.rank,
        "block": 6 * (layout.blocks + 1),
        "needs": 2 * layout.blocks,
        "order": layout.blocks * layout.rows,
    }
    for (name, tensor), dtype in zip(packed._asdict().items(), _TYPES, strict=True):
        size = sizes.get(name, tensor.numel())
        if tensor.numel() != size or tensor.dtype != dtype or not tensor.is_contiguous():
            raise InputError(
                f"packed tensor {name!r} has {tensor.numel()} elements of {tensor.dtype}, needed "
                f"are {size} of {dtype}, contiguous; take it from `pack`, with its layout"
            )


def latent_of(packed: Packed, layout: Layout) -> Tensor:
    """The latent that was packed: int16, (rank, rows * tiles)."""
    block, runs = packed.block.long(), packed.runs.long()
    device = block.device
    of_run = torch.repeat_interleave(torch.arange(layout.blocks, device=device), block.diff(dim=0)[:, 4])
    lengths = torch.repeat_interleave(runs[:, :2].sum(1), runs[:, 2])
    blocks = torch.repeat_interleave(of_run, runs[:, 2])
    row = torch.repeat_interleave(packed.order.long().flatten(), lengths)
    b = torch.repeat_interleave(blocks, lengths)
    entry = packed.entries.long()[packed.codes[: len(b)].long() + block[b, 3]]
    latent = torch.zeros(layout.rows, layout.columns, dtype=torch.int16, device=device)
    latent.index_put_((row, entry[:, 0] + block[b, 0]), entry[:, 1].to(torch.int16), accumulate=True)
    tiled = latent.reshape(layout.rows, layout.columns // layout.rank, layout.rank)
    return tiled.permute(2, 0, 1).reshape(layout.rank, -1)


def recompose(packed: Packed, layout: Layout) -> Tensor:
    """The dense weight, float32, shape (rows, channels, kernel_h, kernel_w)."""
    tiles = packed.codebook @ latent_of(packed, layout).to(torch.float32)
    rows = tiles.T.reshape(layout.rows, -1)[:, : layout.inputs]
    return rows.reshape(layout.rows, layout.channels, layout.kernel_h, layout.kernel_w)


def _entries(latent: Tensor) -> tuple[list[list[int]], Tensor]:
    """Multiples of each column, and numbers of the two of each latent; 0 is none.

    A multiple that few rows need is the sum of two others, where there are such.
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
    chosen = []
    for column, of_column in enumerate(counts):
        present = of_column.nonzero()[:, 0].tolist()
        number = dict(zip(present, of_column[present].tolist(), strict=True))
        multiples, pairs = _choose({v - most: n for v, n in number.items() if v != most}, often)
        for value, pair in pairs.items():
            table[:, column, value + most] = torch.tensor(pair, dtype=torch.uint8)
        chosen.append(multiples)
    return chosen, table[:, torch.arange(columns), shifted]


def _choose(counts: dict[int, int], often: int) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """Multiples to have in a table, and which two of them, from 1, each value is."""
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


def _halves(latent: Tensor, entries: list[int]) -> tuple[list[int], list[float]]:
    """Bounds of the halves of blocks, by columns, and what each needs."""
    squares, sums = latent.double() ** 2, latent.abs().double()
    bounds, needs, start = [0], [], 0
    energy = total = torch.zeros(len(latent), dtype=torch.float64)
    need = count = 0.0
    for column in range(latent.shape[1]):
        more, longer = energy + squares[:, column], total + sums[:, column]
        # Of a sum's 16 bits, half a step is lost with each input, at most.
        wanted = float(more.max()) ** 0.5 / (_CAPACITY - 0.51 * float(longer.max()))
        error = wanted * math.sqrt((column - start + 1) / 12)
        if column > start and (error > LOSS or count + entries[column] > _HALF):
            bounds.append(column)
            needs.append(need)
            start, count = column, 0
            more, longer = squares[:, column], sums[:, column]
            wanted = float(more.max()) ** 0.5 / (_CAPACITY - 0.51 * float(longer.max()))
        energy, total, need, count = more, longer, wanted, count + entries[column]
    return [*bounds, latent.shape[1]], [*needs, need]


def _rows_of(
    lists: Tensor, multiples: list[list[int]], bounds: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs, order and codes of a block."""
    first, middle, last = bounds
    before = torch.tensor([0] + [len(multiples[c]) for c in range(first, last)]).cumsum(0)[:-1]
    indices = lists[:, :, first:last].long()
    indices = torch.where(indices > 0, indices + before, 0)
    halves = []
    for part in (slice(0, middle - first), slice(middle - first, last - first)):
        codes = indices[:, :, part].permute(1, 2, 0).flatten(1)
        used = codes > 0
        codes = codes.gather(1, (~used).to(torch.uint8).argsort(dim=1, stable=True))
        halves.append((codes, (used.sum(1) + 1) // 2 * 2))
    order = (halves[0][1] * 1024 + halves[1][1]).argsort(stable=True)
    lengths = torch.stack([length[order] for _, length in halves], dim=1)
    pairs, counts = torch.unique_consecutive(lengths, dim=0, return_counts=True)
    kept = [
        torch.arange(codes.shape[1]) < length[:, None] for codes, length in halves
    ]
    both = torch.cat([codes for codes, _ in halves], dim=1)[order]
    mask = torch.cat(kept, dim=1)[order]
    return torch.cat([pairs, counts[:, None]], dim=1), order, both[mask].to(torch.uint8)
