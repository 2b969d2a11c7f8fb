"""Products with factors of few small integers per tile, by tables of 16 entries.

Factors of the set that `tersor.factorization.methods.fast` makes: up to 16 codebook columns, and in
each column of the latent up to 8 nonzeros of magnitude up to 7, which are a byte each. With tiles
along the inputs, y = Z (C.T x): a block of inputs becomes 16 numbers, of which each byte picks one.
See ``csrc/kernels/lookup.hpp`` for how.

Up to `FEW` batch items are computed with 8-bit tables, to a relative error of about 0.7 % (the
Frobenius norm of the difference over that of the output, for inputs and weights that are about
normal); more with 16-bit ones, to about 0.05 %.
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

ATOMS, LARGEST, MOST_NONZEROS = 16, 7, 8
"""Columns of a codebook, magnitude of a latent and nonzeros of a tile that can be packed."""

FEW = 4
"""Batch items that are computed with 8-bit tables."""

_PANEL = 32


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight matrix as one byte per nonzero, in the order in which they are needed.

    Parameters
    ----------
    codes
        uint8, (panels, blocks, pairs, 32, 2): of 32 rows side by side, for each block of inputs, the
        nonzeros two by two. A byte is a sign, three bits of magnitude and four of a column; 0 is
        none.
    codebook
        C times the scale, (d, 16), float32, with columns of zeros appended.
    shape
        Rows and inputs of the weight.
    """

    codes: Tensor
    codebook: Tensor
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.codes.nbytes + self.codebook.nbytes

    def recompose(self) -> Tensor:
        """The dense weight, float32."""
        rows, inputs = self.shape
        values = (self.codes >> 4 & LARGEST).float() * (1 - 2 * (self.codes >> 7).float())
        latent = F.one_hot((self.codes & 15).long(), ATOMS) * values[..., None]
        tiles = latent.sum(dim=(2, 4)) @ self.codebook.T
        return tiles.transpose(1, 2).flatten(2).flatten(0, 1)[:rows, :inputs]


def fits(factors: Factors) -> bool:
    """Whether factors can be packed."""
    latent = factors.latent
    if not factors.quantized or factors.rank > ATOMS:
        return False
    if not latent.numel():
        return True
    return bool(latent.abs().amax() <= LARGEST) and most_nonzeros(latent) <= MOST_NONZEROS


def most_nonzeros(latent: Tensor) -> int:
    """Nonzeros of the column that has most."""
    return int((latent != 0).sum(dim=0).amax()) if latent.numel() else 0


def pack(factors: Factors) -> Packed:
    """The layout that the kernels work on.

    Raises
    ------
    InputError
        If the factors do not fit it.
    """
    if not fits(factors):
        raise InputError(
            f"factors with integer codebooks of up to {ATOMS} columns and up to {MOST_NONZEROS} "
            f"nonzeros per tile of magnitude up to {LARGEST} can be packed, got rank "
            f"{factors.rank}; factorize with methods.fast"
        )
    tiling = factors.tiling
    pairs = max(1, -(-most_nonzeros(factors.latent) // 2))
    panels = -(-tiling.shape[0] // _PANEL)
    codes = torch.empty(panels, tiling.tiles_per_row, pairs, _PANEL, 2, dtype=torch.uint8)
    codebook = factors.codebook.cpu().float() * factors.scale
    codebook = F.pad(codebook, (0, ATOMS - factors.rank)).contiguous()
    shape = (tiling.shape[0], tiling.row_length)
    _fill(codes, factors.latent.cpu().contiguous(), shape, tiling.size)
    return Packed(codes, codebook, shape)


def _fill(codes: Tensor, latent: Tensor, shape: tuple[int, int], tile: int) -> None:
    if _lookup is not None:
        threads = torch.get_num_threads()
        _lookup.pack(latent.numpy(), codes.numpy(), *shape, tile, threads)
        return
    panels, blocks, pairs = codes.shape[:3]
    slots = min(2 * pairs, len(latent))
    # Stable: a column's nonzeros in the order of their rows, then zeros.
    order = (latent == 0).to(torch.uint8).sort(dim=0, stable=True).indices[:slots]
    values = latent.gather(0, order)
    bytes_ = (values < 0) * 128 + values.abs() * 16 + order
    bytes_ = F.pad(torch.where(values == 0, 0, bytes_), (0, 0, 0, 2 * pairs - slots))
    bytes_ = F.pad(bytes_.reshape(2 * pairs, shape[0], blocks), (0, 0, 0, panels * _PANEL - shape[0]))
    bytes_ = bytes_.reshape(pairs, 2, panels, _PANEL, blocks).permute(2, 4, 0, 3, 1)
    codes.copy_(bytes_.to(torch.uint8))


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
    if _lookup is None:
        return reference(x, packed)
    (rows, inputs), batch = packed.shape, x.shape[0]
    if x.shape[1] != inputs or x.dtype != torch.float32:
        raise InputError(
            f"inputs of shape (batch, {inputs}) and type float32 are needed, got "
            f"{tuple(x.shape)} and {x.dtype}"
        )
    y = x.new_empty(batch, rows)
    tile, pairs = packed.codebook.shape[0], packed.codes.shape[2]
    _lookup.linear(
        x.data_ptr(),
        *x.stride(),
        packed.codes.data_ptr(),
        packed.codebook.data_ptr(),
        rows,
        inputs,
        tile,
        pairs,
        y.data_ptr(),
        batch,
        batch > FEW,
        torch.get_num_threads(),
    )
    return y
