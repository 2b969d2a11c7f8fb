"""Which tile size a weight gets: the candidate that costs least, tried on a part of the weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tersor.factorization.products import inner
from tersor.factorization.rate_aware import PRICE, Coder, codebook_bits, solve_rate_aware
from tersor.factorization.solve import distortion
from tersor.factorization.weights import SIGNS
from tersor.tiling import Tiling, coding_order, evenly_spaced_rows, window_size

_SAMPLE = 1 << 15
"""Weights that candidates are tried on."""

_SEGMENTS = (8, 32, 128)
"""Input segments that are tried for matrices."""

_MOST_SEGMENT = 64
"""Largest tile of signs: a quarter of a bit per weight."""

_LARGEST = 1024
"""Largest tile: the codebook of d columns has up to d squared elements."""

_STATES = 8
"""Of the trellis in trials: more change all sizes alike."""

_ELEMENT_BITS = 5
"""About what an element of a codebook costs."""

_DOUBT = 1.03
"""Sizes whose estimate is worse than that of single weights by this factor are not tried."""

_KERNEL_NAMES = ("weight", "original", "kernel")
"""What the last part of a kernel's name starts with, parametrized or not."""

_LEAST_MATRIX, _CERTAIN_MATRIX = 32, 256
"""Rows and columns of a matrix in a stack, at least; and those that no kernel has both of."""


def is_stack(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight of three axes is a stack of matrices, such as experts, and no kernel.

    That is a guess, of the name and the shape: files of weights do not say what these are used for.
    """
    kernel = name.rpartition(".")[2].startswith(_KERNEL_NAMES)
    least = _CERTAIN_MATRIX if kernel else _LEAST_MATRIX
    return len(shape) == 3 and shape[0] > 1 and min(shape[1:]) >= least


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


@dataclass(frozen=True)
class Choice:
    """A tile size, and what is known of the weight in tiles of it.

    Parameters
    ----------
    tile
        Tile size d.
    spectrum
        Variances of the tiles' axes in units of the step squared, (d,).
    tiles
        Number of tiles.
    nbytes
        Size to expect; None if nothing was tried.
    """

    tile: int
    spectrum: NDArray[np.float64]
    tiles: float
    nbytes: float | None = None


def choose(weight: Tensor, step: float, *, stack: bool = False) -> Choice:
    """Tile size at which distortion + price * bits of the weight is least at this step.

    Of a ``stack`` of matrices tiles are segments of the rows of these: none reaches into the next.
    """
    sample, repeat, sizes = _sample(weight, step, stack)
    choices = [_untried(sample, repeat, size) for size in sizes]
    likely = [c for c in choices if _estimate(c) <= _DOUBT * _estimate(choices[0])]
    if likely == choices[:1]:
        return choices[0]
    tried = [_tried(sample, choice, repeat) for choice in likely]
    return min(tried, key=lambda pair: (pair[0], pair[1].tile))[1]


def is_candidate(weight: Tensor, step: float, choice: Choice, *, stack: bool = False) -> bool:
    """Whether a choice is one of those that `choose` chooses among, whichever was best."""
    sample, repeat, sizes = _sample(weight, step, stack)
    if choice.tile not in sizes:
        return False
    untried = _untried(sample, repeat, choice.tile)
    same = np.array_equal(untried.spectrum, choice.spectrum) and untried.tiles == choice.tiles
    return same and (choice.nbytes is None or 0 <= choice.nbytes < math.inf)


def _sample(weight: Tensor, step: float, stack: bool) -> tuple[Tensor, float, list[int]]:
    """Some rows in units of the step, how many times as many there are, and sizes of tiles."""
    if stack:
        weight = weight.flatten(0, 1)
    sizes = candidates(tuple(weight.shape))
    if stack:
        sizes = [size for size in sizes if weight.shape[1] % size == 0]
    sample = evenly_spaced_rows(weight, _SAMPLE) / step
    return sample, weight.shape[0] / sample.shape[0], sizes


def tile_of_signs(shape: tuple[int, ...], variance: float) -> int:
    """Tile size at which `SIGNS` signs are as many bits as a weight has at a step.

    The smallest of those with as many tiles in a row.

    Parameters
    ----------
    variance
        Of its elements, in units of the step squared.
    """
    bits = 0.5 * math.log2(1 + variance * 2 * math.log(2) / PRICE)
    row = math.prod(shape[1:])
    # The codebook takes half of what the signs do, at most.
    most = min(row, math.isqrt(math.prod(shape) // SIGNS), _MOST_SEGMENT)
    tile = max(1, round(SIGNS / max(bits, SIGNS / most)))
    return math.ceil(row / math.ceil(row / tile))


def _untried(sample: Tensor, repeat: float, size: int) -> Choice:
    tiles = Tiling(tuple(sample.shape), size).split(sample)
    covariance = inner(tiles.T, tiles.T, torch.float64) / tiles.shape[1]
    spectrum = torch.linalg.eigvalsh(covariance).clamp_min(0).numpy()
    return Choice(size, spectrum, repeat * tiles.shape[1])


def _estimate(choice: Choice) -> float:
    """Cost of the whole weight if its tiles were Gaussian and coded at the bound, and its codebook.

    At the price p of a bit every axis of a variance above p / (2 ln 2) keeps that much error.
    """
    level = PRICE / (2 * math.log(2))
    bits = 0.5 * np.log2(np.maximum(choice.spectrum / level, 1))
    cost = np.minimum(choice.spectrum, level) + PRICE * bits
    axes = int((bits > 0).sum()) if choice.tile > 1 else 0
    return choice.tiles * float(cost.sum()) + PRICE * _ELEMENT_BITS * choice.tile * axes


def _tried(sample: Tensor, choice: Choice, repeat: float) -> tuple[float, Choice]:
    """Cost of the whole weight, of which the sample is one part in ``repeat``, and its size."""
    rows = sample.shape[0]
    tiles = coding_order(Tiling(tuple(sample.shape), choice.tile).split(sample), rows)
    result = solve_rate_aware(tiles, rows, states=_STATES, iterations=2, tolerance=1e-2)
    bits = repeat * float(Coder(rows, _STATES).bits(result.latent).sum())
    bits += codebook_bits(result.codebook[:, result.latent.any(dim=1)])
    error = repeat * distortion(tiles, result.codebook, result.latent)
    return error + PRICE * bits, replace(choice, nbytes=bits / 8)
