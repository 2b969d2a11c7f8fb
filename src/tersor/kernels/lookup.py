# SPDX-License-Identifier: Apache-2.0
"""Pack factors with few small integers in a tile, or binary latents, for look-up kernels.

With tiles along the input, ``y = Z @ (C.T @ x)``: a tile of inputs becomes a few numbers, one for
each column of the codebook, and bytes say how a row of the matrix combines them. Two sets of
latents can be packed, see `tersor.factorization.methods`:

- ``few_integers``: up to 8 nonzeros in a column, of magnitude up to 7 and in up to 16 rows; a byte
  has the number of a row and a value.
- ``binary_sums``: all entries are -1 or 1, in up to 64 rows; a byte has the signs of eight rows.

``csrc/kernels/lookup.hpp`` describes the kernels. `Lookup.latent` returns exactly the latent
that was packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.factorization.methods import LOOKUP_COLUMNS, LOOKUP_LARGEST
from tersor.factors import Factors
from tersor.kernels.packing import Matrix, Shape
from tersor.kernels.padding import pad

_COLUMNS, _LARGEST = LOOKUP_COLUMNS, LOOKUP_LARGEST
"""Number of columns to which a pair of bytes refers, and largest magnitude of an integer."""

_MOST_PAIRS = 4
"""Largest number of pairs of bytes for a tile."""

_PANEL = 32
"""Number of rows of a panel, whose bytes lie side by side."""


class Layout(NamedTuple):
    """The sizes of a packed matrix, which the shapes of its tensors do not tell."""

    rows: int
    inputs: int
    tile: int
    pairs: int
    binary: int

    @property
    def tiles(self) -> int:
        """Number of tiles of a row."""
        return -(-self.inputs // self.tile)

    @property
    def columns(self) -> int:
        """Number of columns of the packed codebook, with the columns of zeros at its end."""
        return _COLUMNS * (self.pairs if self.binary else 1)

    @property
    def panels(self) -> int:
        """Number of panels, groups of rows whose bytes lie side by side."""
        return -(-self.rows // _PANEL)


class Tensors(NamedTuple):
    """The tensors of packed factors.

    Parameters
    ----------
    codebook
        C times the scale, float32, with columns of zeros appended: (d, 16) for integers, (d, 16 *
        pairs) for binary latents.
    codes
        Codes, uint8, in panels of 32 rows side by side; for each tile of inputs pairs of bytes. For
        integers the shape is (panels, tiles, pairs, 32, 2), and a byte has a sign, three bits of
        magnitude and four bits of a column number, or is 0. For binary latents the shape is
        (panels, tiles, pairs, 2, 32), and a byte has a bit for each of eight columns, set for -1.
    """

    codebook: Tensor
    codes: Tensor


@dataclass(eq=False)
class Lookup(Matrix):
    """Factors of a matrix, packed for look-ups."""

    tensors: Tensors
    layout: Layout

    name: ClassVar[str] = "lookup"
    kernel: ClassVar[str] = "Lookup"
    many: ClassVar[int] = 5
    """Least number of vectors that are multiplied with 16-bit tables; fewer use 8-bit tables."""
    Tensors = Tensors
    Layout = Layout

    @classmethod
    def packable(cls, factors: Factors) -> bool:
        """Return whether factors can be packed here in at most the bytes of integers of 2 bits."""
        found = _pairs_of_bytes(factors)
        return found is not None and 8 * found[0] <= factors.rank

    @classmethod
    def pack(cls, factors: Factors) -> Lookup:
        """Return factors of a matrix packed for the kernels.

        Raises
        ------
        InputError
            If the factors are not those of a matrix, or the latent is in neither of the two sets.
        """
        found = _pairs_of_bytes(factors)
        if found is None:
            raise InputError(
                f"these factors of shape {factors.shape} and rank {factors.rank} cannot be looked "
                "up: a matrix by methods.few_integers or methods.binary_sums is needed"
            )
        (pairs, binary), tiling = found, factors.tiling
        layout = Layout(tiling.shape[0], tiling.row_length, tiling.size, pairs, int(binary))
        codebook = factors.codebook.to(torch.float32) * factors.scale
        codebook = pad(codebook, (0, layout.columns - factors.rank)).contiguous()
        codes = (_binary if binary else _integers)(factors.latent, 2 * pairs)
        padding = (0, 0, 0, layout.panels * _PANEL - layout.rows)
        codes = pad(codes.reshape(2 * pairs, layout.rows, layout.tiles), padding)
        order = (2, 4, 0, 1, 3) if binary else (2, 4, 0, 3, 1)
        codes = codes.reshape(pairs, 2, layout.panels, _PANEL, layout.tiles).permute(order)
        return cls(Tensors(codebook, codes.contiguous()), layout)

    def expected(self) -> dict[str, tuple[Shape, torch.dtype]]:
        """Return shape and type of each tensor, or raise an `InputError` for impossible sizes."""
        layout = self.layout
        if min(layout[:4]) < 1 or layout.pairs > _MOST_PAIRS or layout.binary not in (0, 1):
            raise InputError(f"{layout} is of no packed matrix; take it from `pack`")
        last = (2, _PANEL) if layout.binary else (_PANEL, 2)
        return {
            "codebook": ((layout.tile, layout.columns), torch.float32),
            "codes": ((layout.panels, layout.tiles, layout.pairs, *last), torch.uint8),
        }

    def unpack(self, index: Tensor) -> Tensor:
        """Return the latent of some rows exactly: int16, shape (len(index), tiles, columns).

        Parameters
        ----------
        index
            Row numbers, int64, one axis.
        """
        panel, place = index // _PANEL, index % _PANEL
        if self.layout.binary:
            codes = self.tensors.codes[panel, :, :, :, place]
            bits = codes[..., None] >> torch.arange(8, dtype=torch.uint8, device=index.device) & 1
            return 1 - 2 * bits.flatten(2).to(torch.int16)
        codes = self.tensors.codes[panel, :, :, place].flatten(2)
        values = (codes >> 4 & _LARGEST).to(torch.int16) * (1 - 2 * (codes >> 7).to(torch.int16))
        latent = values.new_zeros(*codes.shape[:2], _COLUMNS)
        # An unused byte is 0, and adds 0 to column 0.
        return latent.scatter_add_(2, (codes & 15).long(), values)

    def rows_of(self, index: Tensor) -> Tensor:
        """Return some rows of the matrix, float32, shape (len(index), inputs); read no others."""
        tiles = self.unpack(index).to(torch.float32) @ self.tensors.codebook.T
        return tiles.flatten(1)[:, : self.layout.inputs]

    def latent(self) -> Tensor:
        """Return the latent that was packed, int16, (columns, rows * tiles).

        Below its rows are those of the columns that were appended to the codebook.
        """
        layout = self.layout
        index = torch.arange(layout.rows, device=self.tensors.codes.device)
        latent = self.unpack(index).permute(2, 0, 1)
        return latent.reshape(layout.columns, layout.rows * layout.tiles)


def _pairs_of_bytes(factors: Factors) -> tuple[int, bool] | None:
    """Return the pairs of bytes per tile, and whether they are binary; None if not packable."""
    latent, rank = factors.latent, factors.rank
    if not factors.quantized or len(factors.shape) != 2:
        return None
    if not latent.numel():
        return 1, False
    if bool((latent.abs() == 1).all()):
        pairs = -(-rank // _COLUMNS)
        return (pairs, True) if pairs <= _MOST_PAIRS else None
    if rank > _COLUMNS or int(latent.abs().amax()) > _LARGEST:
        return None
    pairs = -(-int((latent != 0).sum(dim=0).amax()) // 2)
    return (max(pairs, 1), False) if pairs <= _MOST_PAIRS else None


def _binary(latent: Tensor, number: int) -> Tensor:
    """Return the bytes (number, n) of a binary latent (k, n)."""
    padded = pad(latent, (0, 0, 0, 8 * number - len(latent)))
    codes = padded.new_zeros(number, latent.shape[1], dtype=torch.uint8)
    for bit in range(8):
        codes |= (padded[bit::8] < 0).to(torch.uint8) << bit
    return codes


def _integers(latent: Tensor, number: int) -> Tensor:
    """Return the bytes (number, n) of few integers (k, n), in the order of their rows."""
    codes = latent.new_zeros(number + 1, latent.shape[1], dtype=torch.uint8)
    free = latent.new_zeros(1, latent.shape[1], dtype=torch.int64)
    for row, values in enumerate(latent[:, None]):
        some = values != 0
        each = (values < 0) * 128 + values.abs() * 16 + row
        # A zero is written as byte 0, and its place stays free for the next value.
        codes.scatter_(0, free, torch.where(some, each, 0).to(torch.uint8))
        free += some
    return codes[:number]
