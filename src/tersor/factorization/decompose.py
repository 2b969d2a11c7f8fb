# SPDX-License-Identifier: Apache-2.0
"""Decompose a weight into factors: cut it into tiles, solve, and convert the result.

A `Method` says which problem is solved and from which starting factors;
`tersor.factorization.methods` has the known ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tersor.errors import InputError
from tersor.factorization.initialize import replace_column
from tersor.factorization.rate_aware import codebook_exponent
from tersor.factorization.solve import (
    Penalty,
    Result,
    Start,
    Status,
    Update,
    least_squares,
    no_penalty,
    solve,
)
from tersor.factors import Factors
from tersor.tiling import Tiling, as_float32, coding_order, natural_order

_SMALLEST = 2.0**-149
"""Smallest positive number of float32."""


def power_of_two(weight: Tensor) -> float:
    """Return the unit of real factors: the largest power of two up to the largest magnitude.

    It is at least the smallest normal number of float32.
    """
    exponent = math.frexp(float(weight.abs().amax()))[1] - 1
    return 2.0 ** max(exponent, -126)


@dataclass(frozen=True)
class Method:
    """A decomposition: the settings for `tersor.factorization.solve.solve`.

    Parameters
    ----------
    start
        Function that returns starting factors of tiles (d, n): ``start(tiles, generator) -> (C,
        Z)``.
    update_latent, update_codebook, penalty, iterations, tolerance
        Settings as in `tersor.factorization.solve.solve`, with the same defaults.
    starts
        Number of runs from different starting factors; the best counts. Default 1.
    restarts
        Number of runs after these, each from the best factors so far with a weak column replaced;
        default 0.
    unit
        Function that returns the number by which a float32 weight is divided before it is solved;
        default `power_of_two`.
    dtype
        Data type of the computation: float64 (default), or float32 for methods whose results are
        defined by its rounding.
    """

    start: Callable[[Tensor, Generator], Start]
    update_latent: Update
    update_codebook: Update = least_squares
    penalty: Penalty = no_penalty
    iterations: int = 100
    tolerance: float = 1e-5
    starts: int = 1
    restarts: int = 0
    unit: Callable[[Tensor], float] = power_of_two
    dtype: torch.dtype = torch.float64

    def solve(self, tiles: Tensor, generator: Generator) -> Result:
        """Return the best result of all runs on tiles (d, n), in units of ``unit``."""
        starts = (self.start(tiles, generator) for _ in range(self.starts))
        best = min((self._run(tiles, start) for start in starts), key=_objective)
        for attempt in range(self.restarts):
            start = replace_column(tiles, best.codebook, best.latent, attempt)
            best = min(best, self._run(tiles, start), key=_objective)
        return best

    def _run(self, tiles: Tensor, start: Start) -> Result:
        return solve(
            tiles,
            start,
            update_latent=self.update_latent,
            update_codebook=self.update_codebook,
            penalty=self.penalty,
            iterations=self.iterations,
            tolerance=self.tolerance,
        )


def _objective(result: Result) -> float:
    return min(result.history)


@dataclass(frozen=True)
class Solution:
    """A decomposed weight.

    Parameters
    ----------
    factors
        The factors of the weight.
    status
        Reason why the solver stopped: ``"converged"`` or ``"iteration limit"``.
    history
        Objective at the start and after each iteration of the best run, in units of the squared
        weight. The padding of the tiles counts.

    Examples
    --------
    >>> from tersor.factorization import methods
    >>> solution = tersor.factorize(torch.randn(64, 64), method=methods.weight_svd(rank=4))
    >>> solution.status, solution.factors.rank, solution.history[-1] <= solution.history[0]
    ('converged', 4, True)
    """

    factors: Factors
    status: Status
    history: tuple[float, ...]


def decompose(weight: Tensor, method: Method, *, tile: int, seed: int = 0) -> Solution:
    """Return factors of a weight by any method.

    Parameters
    ----------
    weight
        Weight of a floating-point type, with at least one axis, not empty, finite.
    method
        Method from `tersor.factorization.methods`, or your own `Method`.
    tile
        Tile size d, from 1 to the length of a flattened row ``weight[0]``.
    seed
        Seed of the random starting points; default 0.

    Returns
    -------
    Solution
        Solution whose factors are int16 if both are multiples of a unit, as integer methods make
        them, else float32. Columns of the codebook that no tile uses are removed.

    Raises
    ------
    InputError
        If the weight is not as described, or is too small for the settings of the method.
    """
    check(weight, tile)
    tiling, values = Tiling(tuple(weight.shape), tile), as_float32(weight)
    if not bool(values.any()):
        nothing = values.new_zeros(tile, 0), values.new_zeros(0, tiling.count)
        return _solution(Result(*nothing, (0.0,), "converged"), 1.0, weight)
    unit = max(float(torch.tensor(method.unit(values), dtype=torch.float32)), _SMALLEST)
    tiles = coding_order(tiling.split(values) / unit, tiling.slices).to(method.dtype)
    result = method.solve(tiles, torch.Generator().manual_seed(seed))
    return _solution(result, unit, weight)


def _solution(result: Result, unit: float, weight: Tensor) -> Solution:
    history = tuple(unit**2 * value for value in result.history)
    used = result.latent.any(dim=1)
    codebook = result.codebook[:, used]
    latent = natural_order(result.latent[used], Tiling(tuple(weight.shape), len(codebook)).slices)
    dtype, exponent = torch.float32, codebook_exponent(codebook)
    whole = codebook * 2.0**-exponent
    if _is_integer(whole) and _is_integer(latent):
        dtype, codebook, unit = torch.int16, whole, unit * 2.0**exponent
    parts = codebook.to(dtype).contiguous(), latent.to(dtype).contiguous()
    factors = Factors(*parts, unit, tuple(weight.shape), weight.dtype)
    return Solution(factors, result.status, history)


def _is_integer(factor: Tensor) -> bool:
    largest = torch.iinfo(torch.int16).max
    return bool(((factor == factor.round()) & (factor.abs() <= largest)).all())


def check(weight: Tensor, tile: int) -> None:
    """Raise an `InputError` if a weight cannot be decomposed with this tile size."""
    shape = tuple(weight.shape)
    if not weight.is_floating_point():
        raise InputError(f"a weight must be of a floating-point type, got {weight.dtype}")
    if not shape or not weight.numel():
        raise InputError(f"a weight must have an axis and none that is empty, got shape {shape}")
    longest = Tiling(shape, 1).row_length
    if not 1 <= tile <= longest:
        raise InputError(
            f"tile must be from 1 to {longest}, the length of a flattened row of a weight of shape "
            f"{shape}; got {tile}"
        )
    if bad := int((~as_float32(weight).isfinite()).sum()):
        raise InputError(
            f"{bad} of the {weight.numel()} elements of a weight of shape {shape} are NaN, "
            "infinite or beyond the range of float32; all must be finite"
        )
