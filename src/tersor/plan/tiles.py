"""Which tile size a weight gets: the candidate that costs least, tried on a part of the weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tersor.factorization.rate_aware import PRICE, Coder, codebook_bits, solve_rate_aware
from tersor.factorization.solve import distortion
from tersor.tiling import Tiling, coding_order, window_size

_SAMPLE = 1 << 17
"""Weights that candidates are tried on."""

_SEGMENTS = (8, 16, 32, 64, 128)
"""Input segments that are tried for matrices."""

_LARGEST = 1024
"""Largest tile: the codebook of d columns has up to d squared elements."""


def candidates(shape: tuple[int, ...]) -> list[int]:
    """Tile sizes that suit a weight: single weights, kernel windows, segments, whole rows.

    A tile as long as a row is tried where the rows are many enough to pay for its codebook.
    """
    row, window = math.prod(shape[1:]), window_size(shape)
    sizes = {1, row} | {window * n for n in (1, 2, 3)}
    if window < min(_SEGMENTS):
        sizes |= {window * max(1, round(size / window)) for size in _SEGMENTS}
    weights = math.prod(shape)
    return sorted(d for d in sizes if d <= min(row, _LARGEST) and (d == 1 or 8 * d * d <= weights))


def choose(weight: Tensor, step: float) -> int:
    """Tile size at which distortion + price * bits of the weight is least at this step."""
    sizes = candidates(tuple(weight.shape))
    if len(sizes) == 1:
        return sizes[0]
    sample = _sample(weight) / step
    costs = {size: _cost(sample, size, weight.shape[0] / sample.shape[0]) for size in sizes}
    return min(costs, key=lambda size: (costs[size], size))


def _sample(weight: Tensor) -> Tensor:
    """Evenly spaced rows, `_SAMPLE` weights in all or not much more."""
    rows = weight.shape[0]
    wanted = max(1, min(rows, math.ceil(_SAMPLE * rows / weight.numel())))
    return weight[torch.linspace(0, rows - 1, wanted).round().long()]


def _cost(sample: Tensor, size: int, repeat: float) -> float:
    """Cost of the whole weight, of which the sample is one part in ``repeat``."""
    rows = sample.shape[0]
    tiles = coding_order(Tiling(tuple(sample.shape), size).split(sample), rows)
    result = solve_rate_aware(tiles, rows, states=8, iterations=3, tolerance=1e-2)
    bits = PRICE * float(Coder(rows, 8).bits(result.latent).sum())
    live = result.latent.any(dim=1)
    fixed = PRICE * codebook_bits(result.codebook[:, live])
    return repeat * (distortion(tiles, result.codebook, result.latent) + bits) + fixed
