# SPDX-License-Identifier: Apache-2.0
"""Factor one weight into quantized factors, at one step size."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tersor.coding.rate import LARGEST
from tersor.factorization.calibrated import solve_binary, solve_calibrated
from tersor.factorization.decompose import decompose
from tersor.factorization.methods import binary_sums
from tersor.factorization.rate_aware import (
    FINEST_SPACING,
    STATES,
    codebook_exponent,
    solve_rate_aware,
)
from tersor.factorization.transposed import solve_transposed
from tersor.factors import EXACT_INTEGERS, Factors, largest_sum, magnitudes
from tersor.tiling import Tiling, as_float32, coding_order, natural_order

_SMALLEST_STEP_SIZE = 2.0**-110
"""Smallest step size. A scale is smaller by the 8 bits of the codebook, and must be a normal number
of float32."""

_FINER = 8.0
"""Times that a step size may be smaller than the smallest that the coder has integers for: with two
columns of the codebook in place of one."""

BINARY = 16
"""Number of columns of a binary latent's tile: two bytes of the look-up kernels."""


def factorize_weight(
    weight: Tensor,
    tile: int,
    step_size: float,
    *,
    moments: Tensor | None = None,
    inputs_first: bool = False,
    states: int = STATES,
) -> Factors:
    """Return rate-aware factors of a weight.

    Parameters
    ----------
    weight
        Weight of a floating-point type, finite, with at least one axis.
    tile
        Tile size d.
    step_size
        Step size, the spacing of the latent's grid, in units of the weight. If integers would be
        too large for the coder, the codebook has further columns, for multiples of a coarser grid.
        If they would be too large for an exact product, the step size is enlarged.
    moments
        Positive definite second moments of the inputs, (m, m), with m the length of a flattened
        row. If given, the error of the layer's output is minimised, else the error of the weight.
    inputs_first
        Whether the inputs run along the first axis of a matrix instead, so that the moments are
        (rows, rows); False by default.
    states
        States of the trellis, default 32; 1: scalar quantization.

    Returns
    -------
    Factors
        Quantized factors, without rows of zeros in the latent.
    """
    values, tiling = as_float32(weight), Tiling(tuple(weight.shape), tile)
    scale = float(values.abs().amax())
    if scale == 0:
        return _factors(values.new_zeros(tile, 0), values.new_zeros(0, tiling.count), 1.0, weight)
    # The norm of a tile bounds its product with any axis. Tiles are divided by the largest
    # magnitude first, since squares may overflow.
    norm = scale * float(tiling.split(values / scale).norm(dim=0).amax())
    least = norm / ((LARGEST - 1) * FINEST_SPACING)
    if (step_size := max(step_size, least / _FINER, _SMALLEST_STEP_SIZE)) < least:
        unit = 2.0 ** math.ceil(math.log2(least / step_size))
        solved = partial(factorize_weight, moments=moments, inputs_first=inputs_first)
        parts = _in_two_parts(weight, tile, step_size, unit, solved)
        return parts or solved(weight, tile, 1.5 * step_size, states=states)
    while True:
        step_size = float(torch.tensor(step_size, dtype=torch.float32))
        if moments is None:
            tiles = coding_order(tiling.split(values / step_size), tiling.slices)
            result = solve_rate_aware(tiles, tiling.slices, states=states)
            del tiles
        else:
            solver = solve_transposed if inputs_first else solve_calibrated
            result = solver(values / step_size, moments, tile, states=states)
        live = result.latent.any(dim=1)
        exponent = codebook_exponent(result.codebook)
        codebook, latent = result.codebook[:, live] * 2.0**-exponent, result.latent[live]
        del result
        if largest_sum(codebook, latent) <= EXACT_INTEGERS and _can_be_coded(latent):
            latent = natural_order(latent.to(torch.int16), tiling.slices)
            return _factors(codebook, latent, step_size * 2.0**exponent, weight)
        step_size *= 1.5


def _in_two_parts(
    weight: Tensor,
    tile: int,
    step_size: float,
    unit: float,
    solved: Callable[[Tensor, int, float], Factors],
) -> Factors | None:
    """Return factors of two parts, multiples of ``unit`` steps and the rest, which is ``solved``.

    Integers of one part would be too large. None if the product would not be exact.
    """
    tiling, values = Tiling(tuple(weight.shape), tile), as_float32(weight)
    step_size = float(torch.tensor(step_size, dtype=torch.float32))
    multiples = (tiling.split(values) / (unit * step_size)).round()
    rest = values - tiling.join(multiples) * (unit * step_size)
    fine = solved(rest, tile, step_size)
    scale = min(fine.scale, unit * step_size) if fine.rank else unit * step_size
    column = unit * step_size / scale
    codebook = torch.cat([column * torch.eye(tile), fine.codebook * (fine.scale / scale)], dim=1)
    latent = torch.cat([multiples, fine.latent.float()])
    if column % 1 or column > LARGEST or largest_sum(codebook, latent) > EXACT_INTEGERS:
        return None
    live = latent.any(dim=1)
    return _factors(codebook[:, live], latent[live], scale, weight)


def factorize_binary(weight: Tensor, tile: int, *, moments: Tensor | None = None) -> Factors:
    """Return factors with a binary latent of 16 columns: 16 / tile bits per weight.

    Parameters
    ----------
    weight
        Weight of a floating-point type, finite, with at least one axis.
    tile
        Tile size d; the weight must have at least 16 tiles.
    moments
        Second moments of the inputs, as in `factorize_weight`.
    """
    factors = decompose(weight, binary_sums(BINARY), tile=tile).factors
    if moments is None or not factors.rank:
        return factors
    start = factors.codebook.float(), factors.latent.float()
    codebook, latent = solve_binary(as_float32(weight) / factors.scale, moments, tile, start)
    exponent = codebook_exponent(codebook)
    return _factors(codebook * 2.0**-exponent, latent, factors.scale * 2.0**exponent, weight)


def _can_be_coded(latent: Tensor) -> bool:
    return not latent.numel() or int(magnitudes(latent, 1).amax()) <= LARGEST


def _factors(codebook: Tensor, latent: Tensor, scale: float, weight: Tensor) -> Factors:
    integers = codebook.to(torch.int16).contiguous(), latent.to(torch.int16).contiguous()
    return Factors(*integers, scale, tuple(weight.shape), weight.dtype)
