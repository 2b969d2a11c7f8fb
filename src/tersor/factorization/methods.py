# SPDX-License-Identifier: Apache-2.0
"""Return the known decompositions, each as a setting of the same solver.

| method                               | codebook C         | columns of the latent Z            |
| ------------------------------------ | ------------------ | ---------------------------------- |
| `weight_svd`                         | real               | real                               |
| `vector_quantization`                | real               | a single one, else zeros           |
| `additive_vector_quantization`       | real               | a fixed number of ones             |
| `dictionary_learning` (sparse PCA)   | real               | a limited number of nonzeros       |
| `scalar`                             | identity           | integers                           |
| `ternary`, `binary`                  | identity           | -1, 0, 1; -1, 1                    |
| `rate_aware` (the default of tersor) | integers           | integers, least error + λ * bits   |
| `few_integers`                       | integers           | a few small integers               |
| `binary_sums`                        | integers           | -1, 1                              |
| `projected_gradient`                 | real, or your set  | your set                           |
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from tersor.coding.rate import LARGEST, TRELLISES
from tersor.errors import InputError
from tersor.factorization import initialize, projections
from tersor.factorization import rate_aware as rate_distortion
from tersor.factorization.decompose import Method
from tersor.factorization.projections import Projection, free, integers
from tersor.factorization.solve import Quadratic, Start, Update, fixed, gradient_step, least_squares
from tersor.factorization.updates import (
    exchange_binary,
    exchange_ones,
    means,
    nearest_column,
    orthonormal_rows,
    project_target,
    pursue,
    pursue_integers,
    use_every_row,
)
from tersor.tiling import Rows

LOOKUP_COLUMNS, LOOKUP_LARGEST = 16, 7
"""Number of columns of the codebook and largest magnitude of a nonzero that a byte of the look-up
kernels can express."""

_BINARY_ROUNDS = 4
"""Rounds of a search for binary latents; 16 rounds gain 0.05 dB more, at 2 bits per weight."""


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")


def _at_most(name: str, number: int, limit: int, tiles: Tensor) -> None:
    if number > limit:
        d, n = tiles.shape
        raise InputError(
            f"{name} {number} is too large for {n} tiles of {d} elements; use at most {limit}"
        )


def _check_step_size(step_size: float, largest: float) -> None:
    if largest > LARGEST:
        raise InputError(
            f"step size {step_size:g} is too small: integers would reach {largest:.0f}, at most "
            f"{LARGEST} can be coded; use a step size of {1.001 * step_size * largest / LARGEST:g} "
            "or more"
        )


def weight_svd(rank: int) -> Method:
    """Return the method of low rank: both factors are real, and converge to the truncated SVD.

    The codebook stays orthonormal. This excludes no product and makes both updates exact; together
    they are subspace iteration.

    Parameters
    ----------
    rank
        Rank k, from 1 to the smaller of d and n.
    """
    _at_least_one(rank=rank)

    def start(tiles: Tensor, generator: Generator) -> Start:
        _at_most("rank", rank, min(tiles.shape), tiles)
        codebook = initialize.orthonormal(tiles.shape[0], rank, tiles, generator)
        return codebook, codebook.T @ tiles

    # A second start, since from an unlucky one the last axes may stay near wrong axes for long.
    return Method(
        start,
        project_target(free()),
        orthonormal_rows,
        iterations=2000,
        tolerance=1e-8,
        starts=2,
    )


def vector_quantization(columns: int, *, starts: int = 1) -> Method:
    """Return the method of k-means: each tile is one of the codebook's columns (Lloyd, 1982).

    Parameters
    ----------
    columns
        Columns of the codebook, up to the number of tiles n.
    starts
        Number of runs, each from other k-means++ seeds; the best counts. Default 1.
    """
    _at_least_one(columns=columns, starts=starts)

    def start(tiles: Tensor, generator: Generator) -> Start:
        _at_most("columns", columns, tiles.shape[1], tiles)
        return initialize.clusters(tiles, columns, generator)

    def update(quadratic: Quadratic, latent: Tensor) -> Tensor:
        return use_every_row(quadratic, nearest_column(quadratic, latent))

    return Method(start, update, means, iterations=300, tolerance=0.0, starts=starts)


def additive_vector_quantization(columns: int, count: int, *, starts: int = 1) -> Method:
    """Return the method in which each tile is the sum of a fixed number of different columns.

    It starts from residual quantization: k-means of the tiles with a share of the columns, then
    k-means of the residual with another share, and so on (Babenko and Lempitsky, CVPR 2014). With
    one column per tile it is `vector_quantization`.

    Parameters
    ----------
    columns, starts
        Settings as for `vector_quantization`.
    count
        Number of columns that are added for each tile.
    """
    _at_least_one(columns=columns, count=count, starts=starts)
    if count == 1:
        return vector_quantization(columns, starts=starts)
    if count > columns:
        raise InputError(f"{count} different ones need as many columns, got {columns}")

    def start(tiles: Tensor, generator: Generator) -> Start:
        _at_most("columns", columns, tiles.shape[1], tiles)
        stages, left = [], tiles
        for share in range(count):
            method = vector_quantization((columns + share) // count)
            stages.append(method.solve(left, generator))
            left = left - stages[-1].codebook @ stages[-1].latent
        codebooks, latents = [r.codebook for r in stages], [r.latent for r in stages]
        return torch.cat(codebooks, dim=1), torch.cat(latents)

    def update(quadratic: Quadratic, latent: Tensor) -> Tensor:
        return use_every_row(quadratic, exchange_ones(quadratic, latent))

    return Method(start, update, iterations=100, tolerance=1e-5, starts=starts)


def dictionary_learning(
    columns: int, nonzeros: int, *, starts: int = 4, restarts: int = 12
) -> Method:
    """Return the method of sparse PCA: each tile is a linear combination of a few columns.

    Parameters
    ----------
    columns
        Columns of the codebook, up to the number of tiles n.
    nonzeros
        Largest number of columns in a combination.
    starts, restarts
        Numbers of runs, see `tersor.factorization.decompose.Method`; defaults 4 and 12.
    """
    _at_least_one(columns=columns, nonzeros=nonzeros, starts=starts)
    if nonzeros > columns:
        raise InputError(f"{nonzeros} nonzeros need as many columns, got {columns}")
    search = pursue(nonzeros)

    def start(tiles: Tensor, generator: Generator) -> Start:
        _at_most("columns", columns, tiles.shape[1], tiles)
        codebook, latent = initialize.sparse_coding(tiles, columns, generator)
        return codebook, search(Quadratic(codebook, tiles), latent)

    def update(quadratic: Quadratic, latent: Tensor) -> Tensor:
        return use_every_row(quadratic, search(quadratic, latent))

    return Method(start, update, tolerance=1e-4, starts=starts, restarts=restarts)


def scalar(step_size: float) -> Method:
    """Return the method that rounds weights to multiples of the step size ``step_size``."""
    if not 0 < step_size < math.inf:
        raise InputError(f"step_size must be positive and finite, got {step_size}")

    def start(tiles: Tensor, generator: Generator) -> Start:
        _check_step_size(step_size, float(tiles.abs().amax().round()))
        return _identity(tiles), tiles.round()

    return Method(
        start, project_target(integers()), fixed, unit=lambda weight: step_size, dtype=torch.float32
    )


def ternary() -> Method:
    """Return the method in which weights become -s, 0 or s, with the s of least squared error."""
    return _with_identity(integers(1), ternary_step_size)


def binary() -> Method:
    """Return the method in which weights become -s or s, with the s of least squared error."""
    return _with_identity(projections.binary(), lambda weight: float(weight.abs().double().mean()))


def ternary_step_size(weight: Tensor) -> float:
    """Return the step size of the best ternary weights.

    If the m largest magnitudes become nonzero, the best step size is their mean, and the squared
    error falls by the square of their sum, divided by m. All m are tried.
    """
    sums = weight.abs().double().flatten().sort(descending=True).values.cumsum(0)
    numbers = torch.arange(1, len(sums) + 1, dtype=sums.dtype, device=sums.device)
    best = (sums**2 / numbers).argmax()
    return float(sums[best] / numbers[best])


def _identity(tiles: Tensor) -> Tensor:
    return torch.eye(tiles.shape[0], dtype=tiles.dtype, device=tiles.device)


def _with_identity(project: Projection, unit: Callable[[Tensor], float]) -> Method:
    def start(tiles: Tensor, generator: Generator) -> Start:
        return _identity(tiles), project(tiles)

    return Method(start, project_target(project), fixed, unit=unit, dtype=torch.float32)


def rate_aware(
    step_size: float, *, rows: Rows | None = None, states: int = rate_distortion.STATES
) -> Method:
    """Return the method of least distortion + λ * bits: see `tersor.factorization.rate_aware`.

    It factors as `tersor.factorization.weights.factorize_weight` does, but refuses a step size that
    is too small.

    Parameters
    ----------
    step_size
        Step size, the spacing of the latent's grid, in units of the weight.
    rows
        Weight rows of each slice (`tersor.tiling.Tiling.slices`), whose magnitudes the entropy
        model learns separately; None (default): all columns count as one run.
    states
        States of the trellis: 4, 8, 16, 32 (default) or 64; 1: scalar quantization.
    """
    if not 0 < step_size < math.inf:
        raise InputError(f"step_size must be positive and finite, got {step_size}")
    if states != 1 and states not in TRELLISES:
        raise InputError(f"a trellis has {sorted(TRELLISES)} states, or 1 for none; got {states}")
    coder = rate_distortion.Coder(rows, states)

    def start(tiles: Tensor, generator: Generator) -> Start:
        _check_step_size(step_size, 1 + float(tiles.norm(dim=0).amax()))
        return rate_distortion.start(tiles, coder)

    return Method(
        start,
        coder.update,
        rate_distortion.update_codebook,
        coder.penalty,
        iterations=10,
        tolerance=1e-3,
        unit=lambda weight: step_size,
        dtype=torch.float32,
    )


def few_integers(nonzeros: int = 2, columns: int = 16) -> Method:
    """Return the method in which a tile is a combination of a few columns, with integers up to 7.

    `tersor.kernels.lookup` has fast kernels for such latents: each nonzero is a byte, which is
    ``8 * nonzeros / d`` bits per weight in memory.

    Parameters
    ----------
    nonzeros
        Largest number of nonzeros of each tile; default 2.
    columns
        Columns of the codebook, up to 16 (default).
    """
    _at_least_one(columns=columns, nonzeros=nonzeros)
    if nonzeros > columns or columns > LOOKUP_COLUMNS:
        raise InputError(
            f"up to {LOOKUP_COLUMNS} columns, and as many nonzeros as columns at most, can be "
            f"used; got {columns} columns and {nonzeros} nonzeros"
        )
    search = pursue_integers(nonzeros, LOOKUP_LARGEST)

    def start(tiles: Tensor, generator: Generator) -> Start:
        _at_most("columns", columns, tiles.shape[1], tiles)
        codebook = initialize.directions(tiles, columns, 0.2, generator)
        return codebook, search(
            Quadratic(codebook, tiles), tiles.new_zeros(columns, tiles.shape[1])
        )

    return _with_integers(start, search)


def binary_sums(columns: int = 16) -> Method:
    """Return the method in which each tile is the sum of all columns, each with a sign.

    The latent is binary, with ``columns / d`` bits per weight. `tersor.kernels.lookup` has fast
    kernels for such latents too. With more columns than tile elements the sums fill the space much
    better than a grid: tiles of 8 Gaussian numbers, with 16 columns, lose 1 dB less than with the
    best four levels.

    Parameters
    ----------
    columns
        Columns of the codebook; default 16. Multiples of 16 suit the kernels best.
    """
    _at_least_one(columns=columns)
    deals = torch.Generator()
    search = exchange_binary(_BINARY_ROUNDS, deals)

    def start(tiles: Tensor, generator: Generator) -> Start:
        _at_most("columns", columns, tiles.shape[1], tiles)
        deals.manual_seed(0)
        codebook = initialize.directions(tiles, columns, columns**-0.5, generator)
        quadratic = Quadratic(codebook, tiles)
        return codebook, search(quadratic, projections.binary()(quadratic.target))

    return _with_integers(start, search)


def _with_integers(start: Callable[[Tensor, Generator], Start], search: Update) -> Method:
    """Return the method of a search for integer latents, with a codebook of 8-bit integers."""

    def update_codebook(quadratic: Quadratic, transposed: Tensor) -> Tensor:
        return rate_distortion.at_8_bits(least_squares(quadratic, transposed))

    return Method(
        start, search, update_codebook, iterations=30, tolerance=2e-4, dtype=torch.float32
    )


def projected_gradient(
    project: Projection,
    columns: int,
    *,
    project_codebook: Projection | None = None,
    starts: int = 1,
    axes: bool = False,
) -> Method:
    """Return the method of projected gradient descent on any constraint sets.

    Parameters
    ----------
    project
        Projection that maps a (columns, n) matrix to the nearest latent in the set.
    columns
        Columns of the codebook, up to n; with ``axes`` also up to d.
    project_codebook
        Projection that maps a (columns, d) matrix to the nearest transposed codebook in the set.
        By default the codebook is any real matrix.
    starts
        Number of runs, each with other tiles as starting codebook; the best counts. Default 1.
    axes
        If True, start from the principal axes of the tiles, scaled so that each row of the latent
        has a mean square of 1. This suits sets of numbers, while tiles suit sets of few nonzeros.
        Default False.
    """
    _at_least_one(columns=columns, starts=starts)

    def start(tiles: Tensor, generator: Generator) -> Start:
        _at_most("columns", columns, tiles.shape[1], tiles)
        if axes:
            _at_most("columns", columns, tiles.shape[0], tiles)
            codebook, nearest = initialize.unit_axes(tiles, columns)
        else:
            codebook, nearest = initialize.clusters(tiles, columns, generator)
        if project_codebook is not None:
            codebook = project_codebook(codebook.T).T
        quadratic = Quadratic(codebook, tiles)
        # In a discrete set the nearest latent to small real numbers may be zero, and gradient steps
        # would not leave it; the projection of the least-squares latent is tried too.
        latents = [project(nearest), project(least_squares(quadratic, torch.zeros_like(nearest)))]
        return codebook, min(latents, key=lambda latent: float(quadratic.errors(latent).sum()))

    update_codebook = gradient_step(project_codebook, 10) if project_codebook else least_squares
    return Method(start, gradient_step(project, 10), update_codebook, starts=starts)
