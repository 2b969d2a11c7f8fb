# SPDX-License-Identifier: Apache-2.0
"""Multiply by packed matrices on GPUs with Triton, from the same tensors as the CPU's kernels.

Integers: the input is transformed by the codebook, and then multiplied by the small integers, which
are exact in 16 bits. Recomposing the matrix would take the same products of the tensor cores, and
besides the products with the codebook for each block of vectors, since the rank of such factors is
about their tile size.

Look-ups for few vectors: tables of the sums that the codes mean, which stay in the L1 cache. For
more vectors the tiles of the matrix are recomposed and multiplied by the tensor cores, since such
factors can have more numbers than the matrix has weights. Tables of a few kB say what each byte
adds to a tile.

Inputs of 16 bits are transformed and multiplied in their own type, others in TF32, or in float32 if
there are few vectors. Sums are float32. If there are few blocks, several programs share a block,
and their sums are added afterwards, in a fixed order.

This module needs triton; `tersor.kernels.product` imports it if there is a GPU that can run it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from triton import cdiv, next_power_of_2

from tersor.kernels import programs
from tersor.kernels.integers import Integers
from tersor.kernels.lookup import Lookup
from tersor.kernels.packing import Matrix

ALONE = 2
"""Largest number of vectors that are multiplied by integers one by one, without tensor cores."""

FEW = 4
"""Largest number of vectors for which sums are looked up."""

_BLOCK_BYTES = 128
"""Largest number of bytes that one input takes for all vectors of a block. A block has at least 16
vectors, since tensor cores need them."""

_TYPES = (torch.float16, *(() if programs.INTERPRETED else (torch.bfloat16,)))
"""Input types without conversion; Triton's interpreter has no products of bfloat16."""

_PROGRAMS = 512
"""Number of programs that keep a large GPU busy."""


def linear(x: Tensor, matrix: Matrix, bias: Tensor | None) -> Tensor:
    """Return ``x @ W.T + bias``, as `tersor.kernels.product.linear`, on a GPU.

    All tensors must be on this GPU and fit each other; this is not checked.
    """
    layout = matrix.layout
    vectors = x.reshape(-1, layout.inputs).contiguous()
    if x.dtype not in _TYPES:
        vectors = vectors.to(torch.float32)
    bias = None if bias is None else bias.contiguous()
    if not len(vectors):
        return x.new_empty((*x.shape[:-1], layout.rows))
    # Triton starts its programs on the current device.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        parts = KERNELS[type(matrix)](vectors, matrix, bias)
    y = parts[0] if len(parts) == 1 else parts.sum(0)
    return y.to(x.dtype).reshape(*x.shape[:-1], layout.rows)


def _integers(x: Tensor, matrix: Integers, bias: Tensor | None) -> Tensor:
    packed, layout = matrix.tensors, matrix.layout
    batch, positions = len(x), layout.wide + layout.narrow
    (wide, _), (narrow, _), *_ = layout.sections
    words = [columns * bits // 32 for columns, bits in layout.sections]
    sizes = (batch, layout.wide * layout.tiles, *words[:2], batch * wide)
    room = x.new_empty if positions * layout.tiles == wide + narrow else x.new_zeros
    u = room(batch * (wide + narrow))
    if positions:
        programs.transform[batch, cdiv(layout.tiles, 32), cdiv(positions, 32)](
            x, packed.codebook, packed.scale, u, layout.inputs, layout.tile, layout.tiles,
            positions, layout.padded_rank, *sizes,
            DEPTH=_depth(layout.tile), BLOCK_T=32, BLOCK_P=32,
        )  # fmt: skip
    vectors = 1 if batch <= ALONE else _block(x)
    parts = _parts(x, layout.rows, vectors, (wide + narrow) // 512)
    programs.multiply_integers[_grid(parts, vectors)](
        packed.codes.view(torch.int32), u, packed.starts, packed.escapes, bias, parts, layout.rows,
        *sizes, *words[2:], HIGHER=layout.middle > 0, ESCAPES=packed.escapes.numel() > 0,
        VECTORS=vectors,
    )  # fmt: skip
    return parts


def _lookup(x: Tensor, matrix: Lookup, bias: Tensor | None) -> Tensor:
    return (_looked_up if len(x) <= FEW else _recomposed)(x, matrix, bias)


def _looked_up(x: Tensor, matrix: Lookup, bias: Tensor | None) -> Tensor:
    packed, layout = matrix.tensors, matrix.layout
    batch, binary = len(x), bool(layout.binary)
    together, entries = next_power_of_2(batch), 64 * layout.pairs if binary else 16
    room = x.new_empty if together == batch else x.new_zeros
    tables = room((layout.tiles, entries, together), dtype=torch.float32)
    programs.make_tables[batch, cdiv(layout.tiles, 32), cdiv(entries, 32)](
        x, packed.codebook, tables, layout.inputs, layout.tile, layout.tiles, entries,
        layout.columns, BINARY=binary, VECTORS=together,
        DEPTH=_depth(layout.tile), BLOCK_T=32, BLOCK_P=32,
    )  # fmt: skip
    number = layout.tiles * 2 * layout.pairs
    parts = _parts(x, layout.rows, together, number // 128)
    programs.look_up[_grid(parts, together)](
        packed.codes, tables, bias, parts, layout.rows, batch, number,
        BYTES=2 * layout.pairs, BINARY=binary, VECTORS=together,
    )  # fmt: skip
    return parts


def _recomposed(x: Tensor, matrix: Lookup, bias: Tensor | None) -> Tensor:
    packed, layout = matrix.tensors, matrix.layout
    depth, worth = min(64, next_power_of_2(layout.tile)), _worth(layout.binary, x.device)
    tables = worth @ packed.codebook.T.reshape(-1, worth.shape[1], layout.tile)
    tables = F.pad(tables, (0, -layout.tile % depth)).to(x.dtype)
    vectors = _block(x)
    parts = _parts(x, layout.rows, vectors, layout.inputs // 256)
    programs.multiply_recomposed[_grid(parts, vectors)](
        packed.codes, tables, x, bias, parts, layout.rows, len(x), layout.inputs, layout.tiles,
        TILE=layout.tile, BYTES=2 * layout.pairs, BINARY=bool(layout.binary),
        DEPTH=depth, BLOCK_T=64 // depth, VECTORS=vectors,
    )  # fmt: skip
    return parts


KERNELS: dict[type[Matrix], Callable[[Tensor, Any, Tensor | None], Tensor]] = {
    Integers: _integers,
    Lookup: _lookup,
}
"""Function for each packing that has kernels for GPUs: input, matrix and bias -> sums."""


@cache
def _worth(binary: int, device: torch.device) -> Tensor:
    """Return the factor of each column for each byte: (256, 8) for binary latents, or (256, 16)."""
    codes = torch.arange(256, device=device)[:, None]
    if binary:
        return 1.0 - 2 * (codes >> torch.arange(8, device=device) & 1)
    values = (codes >> 4 & 7) * (1.0 - 2 * (codes >> 7))
    return values * ((codes & 15) == torch.arange(16, device=device))


def _depth(tile: int) -> int:
    return min(32, max(16, int(next_power_of_2(tile))))


def _block(x: Tensor) -> int:
    return min(_BLOCK_BYTES // x.element_size(), max(16, int(next_power_of_2(len(x)))))


def _parts(x: Tensor, rows: int, vectors: int, most: int) -> Tensor:
    """Return an empty tensor (programs, batch, rows) for the sums of programs that share a block.

    At most ``most`` programs share a block, which has about 64 rows.
    """
    blocks = cdiv(rows, 64) * cdiv(len(x), vectors)
    number = max(1, min(_PROGRAMS // blocks, most))
    dtype = x.dtype if number == 1 else torch.float32
    return x.new_empty((number, len(x), rows), dtype=dtype)


def _grid(parts: Tensor, vectors: int) -> Callable[[dict[str, int]], tuple[int, ...]]:
    number, batch, rows = parts.shape
    return lambda sizes: (cdiv(rows, sizes["BLOCK_R"]), cdiv(batch, vectors), number)
