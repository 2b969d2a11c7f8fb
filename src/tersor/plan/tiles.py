"""Which tile size a weight gets: the candidate that costs least, tried on a part of the weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tersor.factorization.products import inner
from tersor.factorization.rate_aware import PRICE, Coder, codebook_bits, solve_rate_aware
from tersor.factorization.solve import distortion
from tersor.tiling import Tiling, coding_order, evenly_spaced_rows, window_size

_SAMPLE = 1 << 15
"""Weights that candidates are tried on."""

_SEGMENTS = (8, 32, 128)
"""Input segments that are tried for matrices."""

_LARGEST = 1024
"""Largest tile: the codebook of d columns has up to d squared elements."""

_STATES = 8
"""Of the trellis in trials: more change all sizes alike."""

_ELEMENT_BITS = 5
"""About what an element of a codebook costs."""

_DOUBT = 1.03
"""Sizes whose estimate is worse than that of single weights by this factor are not tried."""


def candidates(shape: tuple[int, ...]) -> list[int]:
    """Tile sizes that suit a weight: single weights, kernel windows, segments, whole rows.

    A tile as long as a row is tried where the rows are many enough to pay for its codebook.
    """
    row, window = math.prod(shape[1:]), window_size(shape)
    sizes = {1, row, window, 3 * window}
    if window < min(_SEGMENTS):
        sizes |= {window * max(1, round(size / window)) for size in _SEGMENTS}
    weights = math.prod(shape)
    return sorted(d for d in sizes if d <= min(row, _LARGEST) and (d == 1 or 8 * d * d <= weights))


def choose(weight: Tensor, step: float) -> int:
    """Tile size at which distortion + price * bits of the weight is least at this step."""
    sizes = candidates(tuple(weight.shape))
    if len(sizes) == 1:
        return sizes[0]
    sample = evenly_spaced_rows(weight, _SAMPLE) / step
    repeat = weight.shape[0] / sample.shape[0]
    estimates = {size: _estimate(sample, size, repeat) for size in sizes}
    likely = [size for size in sizes if estimates[size] <= _DOUBT * estimates[1]]
    if likely == [1]:
        return 1
    costs = {size: _cost(sample, size, repeat) for size in likely}
    return min(costs, key=lambda size: (costs[size], size))


def _estimate(sample: Tensor, size: int, repeat: float) -> float:
    """Cost of the whole weight if its tiles were Gaussian and coded at the bound, and its codebook.

    At the price p of a bit every axis of a variance above p / (2 ln 2) keeps that much error.
    """
    tiles = Tiling(tuple(sample.shape), size).split(sample)
    variances = torch.linalg.eigvalsh(inner(tiles.T, tiles.T, torch.float64) / tiles.shape[1])
    level = PRICE / (2 * math.log(2))
    bits = 0.5 * (variances / level).clamp_min(1).log2()
    cost = variances.clamp_max(level) + PRICE * bits
    axes = int((bits > 0).sum()) if size > 1 else 0
    return repeat * tiles.shape[1] * float(cost.sum()) + PRICE * _ELEMENT_BITS * size * axes


def _cost(sample: Tensor, size: int, repeat: float) -> float:
    """Cost of the whole weight, of which the sample is one part in ``repeat``."""
    rows = sample.shape[0]
    tiles = coding_order(Tiling(tuple(sample.shape), size).split(sample), rows)
    result = solve_rate_aware(tiles, rows, states=_STATES, iterations=2, tolerance=1e-2)
    bits = PRICE * float(Coder(rows, _STATES).bits(result.latent).sum())
    fixed = PRICE * codebook_bits(result.codebook[:, result.latent.any(dim=1)])
    return repeat * (distortion(tiles, result.codebook, result.latent) + bits) + fixed
