"""Products with factors that are coded in bytes, by tables of 16 entries.

With tiles along the inputs, y = Z (C.T x): a block of inputs becomes a few numbers, one for each
column of the codebook, and what a row of the weight does with them is coded in bytes. Two sets of
latents can be, see `tersor.factorization.methods`:

- ``few_integers``: up to 8 nonzeros in a column, of magnitude up to 7 and in up to 16 rows; a byte
  has a row's number and a value.
- ``sign_sums``: all entries are -1 or 1; a byte has the signs of eight rows.

``csrc/kernels/lookup.hpp`` says how they are computed with. Up to `FEW` batch items are computed
with 8-bit tables, to a relative error of about 0.8 % (the Frobenius norm of the difference over
that of the output, for inputs and weights that are about normal); more with 16-bit ones, to 0.05 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InputError
from tersor.factors import Factors

try:
    from tersor import _lookup
except ImportError:  # built without a compiler: the reference runs
    _lookup = None  # type: ignore[assignment]

FEW = 4
"""Batch items that are computed with 8-bit tables."""

_COLUMNS, _LARGEST, _MOST_PAIRS = 16, 7, 4
"""Columns that a pair of bytes is about, largest magnitude of an integer, pairs of a tile."""

_PANEL = 32
"""Rows whose bytes are side by side."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight matrix in bytes, in the order in which they are needed.

    Parameters
    ----------
    codes
        uint8. Of 32 rows side by side, for each block of inputs, the bytes two by two. Of integers,
        (panels, blocks, pairs, 32, 2): a sign, three bits of magnitude and four of a column, or 0.
        Of signs, (panels, blocks, pairs, 2, 32): a bit for each of eight columns, set for -1.
    codebook
        C times the scale, float32, with columns of zeros appended: (d, 16) for integers, else
        (d, 16 * pairs).
    shape
        Rows and inputs of the weight.
    signs
        Which of the two.
    """

    codes: Tensor
    codebook: Tensor
    shape: tuple[int, int]
    signs: bool

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.codes.nbytes + self.codebook.nbytes

    def latent(self) -> Tensor:
        """Z, float32, (panels, 32, blocks, columns), those of the padding included."""
        codes = self.codes.long()
        if self.signs:
            bits = codes[..., None] >> torch.arange(8) & 1
            return (1 - 2 * bits.float()).permute(0, 4, 1, 2, 3, 5).flatten(3)
        values = (codes >> 4 & _LARGEST) * (1 - 2 * (codes >> 7))
        each = F.one_hot(codes & 15, _COLUMNS) * values[..., None]
        return each.sum(dim=(2, 4)).transpose(1, 2).float()

    def recompose(self) -> Tensor:
        """The dense weight, float32."""
        rows, inputs = self.shape
        tiles = self.latent() @ self.codebook.T
        return tiles.flatten(0, 1).flatten(1)[:rows, :inputs]


def pairs_of_bytes(factors: Factors) -> tuple[int, bool] | None:
    """Pairs of bytes that each tile takes, and whether they are signs; None if it cannot be."""
    latent, rank = factors.latent, factors.rank
    if not factors.quantized or len(factors.shape) != 2:
        return None
    if not latent.numel():
        return 1, False
    if bool((latent.abs() == 1).all()):
        pairs, fits = -(-rank // _COLUMNS), True
        return (pairs, True) if pairs <= _MOST_PAIRS else None
    pairs = -(-int((latent != 0).sum(dim=0).amax()) // 2)
    fits = rank <= _COLUMNS and int(latent.abs().amax()) <= _LARGEST and pairs <= _MOST_PAIRS
    return (max(pairs, 1), False) if fits else None


def pack(factors: Factors) -> Packed:
    """The layout that the kernels work on.

    Raises
    ------
    InputError
        If the factors are not of a matrix, or not of one of the two sets.
    """
    found = pairs_of_bytes(factors)
    if found is None:
        raise InputError(
            f"these factors of shape {factors.shape} and rank {factors.rank} cannot be looked up: "
            "a matrix by methods.few_integers or methods.sign_sums is needed"
        )
    (pairs, signs), tiling = found, factors.tiling
    last = (2, _PANEL) if signs else (_PANEL, 2)
    panels = -(-tiling.shape[0] // _PANEL)
    codes = torch.empty(panels, tiling.tiles_per_row, pairs, *last, dtype=torch.uint8)
    columns = _COLUMNS * pairs if signs else _COLUMNS
    codebook = factors.codebook.cpu().float() * factors.scale
    codebook = F.pad(codebook, (0, columns - factors.rank)).contiguous()
    packed = Packed(codes, codebook, (tiling.shape[0], tiling.row_length), signs)
    _fill(packed, factors.latent.cpu().contiguous())
    return packed


def _fill(packed: Packed, latent: Tensor) -> None:
    codes, tile = packed.codes, packed.codebook.shape[0]
    if _lookup is not None:
        threads = torch.get_num_threads()
        rows, inputs = packed.shape
        _lookup.pack(latent.numpy(), codes.numpy(), rows, inputs, tile, packed.signs, threads)
        return
    panels, blocks, pairs = codes.shape[:3]
    each = _signs(latent, 2 * pairs) if packed.signs else _integers(latent, 2 * pairs)
    rows = each.reshape(2 * pairs, -1, blocks)
    rows = F.pad(rows, (0, 0, 0, panels * _PANEL - rows.shape[1]))
    order = (2, 4, 0, 1, 3) if packed.signs else (2, 4, 0, 3, 1)
    codes.copy_(rows.reshape(pairs, 2, panels, _PANEL, blocks).permute(order))


def _signs(latent: Tensor, number: int) -> Tensor:
    """Bytes (number, n) of signs (k, n)."""
    bits = F.pad((latent < 0).long(), (0, 0, 0, 8 * number - len(latent)))
    return (bits.reshape(number, 8, -1) << torch.arange(8)[:, None]).sum(dim=1).to(torch.uint8)


def _integers(latent: Tensor, number: int) -> Tensor:
    """Bytes (number, n) of few integers (k, n), in the order of their rows."""
    places = (latent == 0).to(torch.uint8).sort(dim=0, stable=True).indices[:number]
    values = latent.gather(0, places).long()
    each = torch.where(values == 0, 0, (values < 0) * 128 + values.abs() * 16 + places)
    return F.pad(each, (0, 0, 0, number - len(each))).to(torch.uint8)


def reference(x: Tensor, packed: Packed) -> Tensor:
    """The product in plain PyTorch, exact but for float32: the definition of correct."""
    return F.linear(x, packed.recompose())


def linear(x: Tensor, packed: Packed) -> Tensor:
    """``F.linear(x, weight)`` of a packed weight.

    Parameters
    ----------
    x
        (batch, inputs), float32 on the CPU, of any strides. A batch item with an element that is
        not finite gives NaN only.

    Returns
    -------
    Tensor
        (batch, rows), float32.
    """
    rows, inputs = packed.shape
    if x.dim() != 2 or x.shape[1] != inputs or x.dtype != torch.float32:
        raise InputError(
            f"inputs of shape (batch, {inputs}) and type float32 are needed, got "
            f"{tuple(x.shape)} and {x.dtype}"
        )
    if _lookup is None:
        return reference(x, packed)
    batch = x.shape[0]
    y = x.new_empty(batch, rows)
    _lookup.linear(
        x.data_ptr(),
        x.stride(0),
        x.stride(1),
        packed.codes.data_ptr(),
        packed.codebook.data_ptr(),
        rows,
        inputs,
        packed.codebook.shape[0],
        packed.codes.shape[2],
        packed.signs,
        y.data_ptr(),
        batch,
        batch > FEW,
        torch.get_num_threads(),
    )
    return y
