# SPDX-License-Identifier: Apache-2.0
"""Choose the tile size of a weight: the candidate of least cost, tried on a part of the weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tersor.factorization.products import inner
from tersor.factorization.rate_aware import LAGRANGIAN, Coder, codebook_bits, solve_rate_aware
from tersor.factorization.solve import distortion
from tersor.factorization.weights import BINARY
from tersor.tiling import Tiling, coding_order, evenly_spaced_rows, window_size

_SAMPLE, _TILES = 1 << 15, 4
"""Least number of weights on which candidates are tried, and least number of tiles for each of
their elements."""

_SPECTRUM_SAMPLE = 1 << 20
"""Number of weights from which spectra are computed."""

_SEGMENTS = (8, 32, 128)
"""Lengths of input segments that are tried as tiles of matrices."""

_MOST_SEGMENT = 64
"""Largest tile of binary latents, which gives a quarter of a bit per weight."""

_LARGEST = 1024
"""Largest tile size d, since a codebook has up to d squared elements."""

_ELEMENT_BITS = 5
"""Approximate bits of an element of a codebook."""

_DOUBT, _MOST_TRIED = 1.005, 2
"""Tile sizes whose estimate exceeds that of single weights by more than this factor are not tried,
and of the others only the two with the lowest estimates."""

_GAIN = 1.004
"""Factor by which another tile size must cost less than single weights: samples are not exact."""

_KERNEL_NAMES = ("weight", "original", "kernel")
"""Beginnings of the last part of the name of a kernel, parametrized or not."""

_LEAST_MATRIX, _CERTAIN_MATRIX = 32, 256
"""Least number of rows and of columns of a matrix in a stack; and the number that the rows and
columns of a convolution kernel never both have."""


def is_stack(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a weight of three axes is probably a stack of matrices, such as experts.

    Else it is probably a convolution kernel. This is a guess from the name and the shape: files of
    weights do not say for what a weight is used.
    """
    kernel = name.rpartition(".")[2].startswith(_KERNEL_NAMES)
    least = _CERTAIN_MATRIX if kernel else _LEAST_MATRIX
    return len(shape) == 3 and shape[0] > 1 and min(shape[1:]) >= least


def candidates(shape: tuple[int, ...]) -> list[int]:
    """Return tile sizes that suit a weight: single weights, kernel windows, segments, whole rows.

    A size above 1 is a candidate only if the weight is large enough to pay for its codebook.
    """
    row, window = math.prod(shape[1:]), window_size(shape)
    sizes = {1, row, window, 3 * window}
    if window < min(_SEGMENTS):
        sizes |= {window * max(1, round(size / window)) for size in _SEGMENTS}
    weights = math.prod(shape)
    return sorted(d for d in sizes if d <= min(row, _LARGEST) and (d == 1 or 8 * d * d <= weights))


@dataclass(frozen=True)
class Choice:
    """A tile size, and statistics of the weight in tiles of this size.

    Parameters
    ----------
    tile
        Tile size d.
    spectrum
        Variances along the principal axes of the tiles, in units of the squared step size, (d,).
    tiles
        Number of tiles.
    nbytes
        Estimated size in bytes; None (default) if no factors were tried.
    """

    tile: int
    spectrum: NDArray[np.float64]
    tiles: float
    nbytes: float | None = None


def choose(weight: Tensor, step_size: float, *, stack: bool = False) -> Choice:
    """Return the tile size of least distortion + λ * bits of a weight.

    Parameters
    ----------
    weight
        Weight of a floating-point type.
    step_size
        Step size, the spacing of the latent's grid, in units of the weight.
    stack
        If True, the weight is a stack of matrices, and no tile contains elements of two rows of a
        matrix. Default False.
    """
    weight = weight.flatten(0, 1) if stack else weight
    choices = [_untried(weight, step_size, size) for size in _sizes(weight, stack)]
    single, others = choices[0], sorted(choices[1:], key=_estimate)[:_MOST_TRIED]
    likely = [c for c in others if _estimate(c) <= _DOUBT * _estimate(single)]
    tried = [_tried(weight, step_size, choice) for choice in (single, *likely)]
    return min(tried, key=lambda pair: pair[0] * (1 if pair[1] is tried[0][1] else _GAIN))[1]


def is_candidate(weight: Tensor, step_size: float, choice: Choice, *, stack: bool = False) -> bool:
    """Return whether a choice is one of those that `choose` compares, not only the best."""
    weight = weight.flatten(0, 1) if stack else weight
    if choice.tile not in _sizes(weight, stack):
        return False
    untried = _untried(weight, step_size, choice.tile)
    same = np.array_equal(untried.spectrum, choice.spectrum) and untried.tiles == choice.tiles
    return same and (choice.nbytes is None or 0 <= choice.nbytes < math.inf)


def _sizes(weight: Tensor, stack: bool) -> list[int]:
    """Return the candidates for a weight, or for the matrix of all rows of a stack of matrices."""
    sizes = candidates(tuple(weight.shape))
    return [size for size in sizes if weight.shape[1] % size == 0] if stack else sizes


def tile_of_binary(shape: tuple[int, ...], variance: float) -> int:
    """Return the tile size at which `BINARY` columns give the bits of a weight at a step size.

    Among the tile sizes with the same number of tiles in a row it is the smallest.

    Parameters
    ----------
    shape
        Shape of the weight.
    variance
        Variance of its elements, in units of the squared step size.
    """
    bits = 0.5 * math.log2(1 + variance * 2 * math.log(2) / LAGRANGIAN)
    row = math.prod(shape[1:])
    # The codebook takes at most half as many bits as the signs.
    most = min(row, math.isqrt(math.prod(shape) // BINARY), _MOST_SEGMENT)
    tile = max(1, round(BINARY / max(bits, BINARY / most)))
    return math.ceil(row / math.ceil(row / tile))


def _untried(weight: Tensor, step_size: float, size: int) -> Choice:
    sample = evenly_spaced_rows(weight, _SPECTRUM_SAMPLE) / step_size
    tiles = Tiling(tuple(sample.shape), size).split(sample)
    covariance = inner(tiles.T, tiles.T, torch.float64) / tiles.shape[1]
    spectrum = torch.linalg.eigvalsh(covariance).clamp_min(0).numpy()
    return Choice(size, spectrum, Tiling(tuple(weight.shape), size).count)


def _estimate(choice: Choice) -> float:
    """Return the cost of a weight and its codebook, for Gaussian tiles at the rate bound.

    At the price p = λ of a bit, each axis with a variance above p / (2 ln 2) keeps an error of this
    size.
    """
    level = LAGRANGIAN / (2 * math.log(2))
    bits = 0.5 * np.log2(np.maximum(choice.spectrum / level, 1))
    cost = np.minimum(choice.spectrum, level) + LAGRANGIAN * bits
    axes = int((bits > 0).sum()) if choice.tile > 1 else 0
    return choice.tiles * float(cost.sum()) + LAGRANGIAN * _ELEMENT_BITS * choice.tile * axes


def _tried(weight: Tensor, step_size: float, choice: Choice) -> tuple[float, Choice]:
    """Return the cost of a weight and its size, as found with a sample of it.

    Axes that are fitted to few tiles suit these better than others: the determinant of a sample's
    covariance is too small. For k axes of d elements this saves the sample ``k (2 d - k + 1) / 4``
    nats, whatever the number of tiles, which the whole weight does not save as often as it contains
    the sample.
    """
    sample = evenly_spaced_rows(weight, max(_SAMPLE, _TILES * choice.tile**2)) / step_size
    rows, repeat = sample.shape[0], weight.shape[0] / sample.shape[0]
    tiles = coding_order(Tiling(tuple(sample.shape), choice.tile).split(sample), rows)
    result = solve_rate_aware(tiles, rows)
    bits = repeat * float(Coder(rows).bits(result.latent).sum())
    live = result.latent.any(dim=1)
    bits += codebook_bits(result.codebook[:, live])
    d, k = len(result.codebook), int(live.sum())
    bits += _bits_of_scale(sample, choice) * k * choice.tiles
    bits += d * k * math.log2(repeat) / 2  # a codebook that more tiles use is rounded less
    bits += (repeat - 1) * k * (2 * d - k + 1) / (4 * math.log(2)) if d > 1 else 0
    error = repeat * distortion(tiles, result.codebook, result.latent)
    return error + LAGRANGIAN * bits, replace(choice, nbytes=max(bits, 0.0) / 8)


def _bits_of_scale(sample: Tensor, choice: Choice) -> float:
    """Return how many bits more an element takes in the whole weight, whose rows may be larger."""
    own = float(sample.square().sum(dtype=torch.float64)) / sample.numel()
    whole = float(choice.spectrum.sum()) / choice.tile
    return 0.5 * math.log2(whole / own) if own > 0 and whole > 0 else 0.0
