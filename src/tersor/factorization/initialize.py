# SPDX-License-Identifier: Apache-2.0
"""Compute starting factors for the solver.

All results are the same for the same seed: the generator draws on the CPU for tiles on any device.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from tersor.factorization.products import inner
from tersor.factorization.projections import short_rows
from tersor.factorization.solve import Quadratic, Start, gradient_step, least_squares, solve
from tersor.factorization.updates import nearest_column, shrink, use_every_row

_PENALTY = 0.1
"""Price of a unit of a latent's magnitude in `sparse_coding`, as a share of the mean norm of the
tiles. Half and twice this penalty give results that are as good."""


def principal_components(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvectors of the tiles' covariance and the variances along them.

    Returns
    -------
    tuple
        Orthonormal eigenvectors, (d, d), the largest variance first, with fixed signs; variances,
        (d,), float64.
    """
    values, vectors = torch.linalg.eigh(inner(tiles.T, tiles.T, torch.float64))
    vectors = vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    axes: Tensor = vectors * torch.where(largest < 0, -1.0, 1.0)
    return axes.to(tiles.dtype), values.flip(0).clamp_min(0) / tiles.shape[1]


def principal_axes(tiles: Tensor) -> Tensor:
    """Return the eigenvectors of the tiles' covariance, as in `principal_components`."""
    return principal_components(tiles)[0]


def unit_axes(tiles: Tensor, columns: int) -> Start:
    """Return the leading principal axes as codebook, and the coefficients along them as latent.

    The axes are scaled so that the coefficients of each have a mean square of 1. An axis without
    any variance gets the length of the smallest normal number.
    """
    axes = principal_axes(tiles)[:, :columns]
    coefficients = axes.T @ tiles
    lengths = coefficients.square().mean(dim=1).sqrt().clamp_min(torch.finfo(tiles.dtype).tiny)
    return axes * lengths, coefficients / lengths[:, None]


def orthonormal(rows: int, columns: int, like: Tensor, generator: Generator) -> Tensor:
    """Return random orthonormal columns, (rows, columns), of the type and device of ``like``."""
    normal = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    axes: Tensor = torch.linalg.qr(normal).Q
    return axes.to(like)


def spread_tiles(tiles: Tensor, columns: int, generator: Generator) -> Tensor:
    """Return tiles that are far apart, (d, columns), by k-means++.

    Each tile is drawn with a probability in proportion to its squared distance from the nearest of
    the tiles before it (Arthur and Vassilvitskii, SODA 2007).
    """
    chosen = torch.zeros(columns, dtype=torch.long)
    distance = torch.full((tiles.shape[1],), torch.inf, dtype=torch.float64)
    draws = torch.rand(columns, generator=generator, dtype=torch.float64)
    for j, draw in enumerate(draws):
        # The first tile is drawn uniformly, and so is a tile when all distances are 0.
        weights = distance if 0 < distance.sum() < torch.inf else torch.ones_like(distance)
        cumulative = weights.cumsum(0)
        index = torch.searchsorted(cumulative, draw * cumulative[-1], right=True)
        chosen[j] = index.clamp_max(tiles.shape[1] - 1)
        gap = (tiles - tiles[:, chosen[j], None]).square().sum(dim=0)
        distance = torch.minimum(distance, gap.double().cpu())
    return tiles[:, chosen.to(tiles.device)]


def clusters(tiles: Tensor, columns: int, generator: Generator) -> Start:
    """Return a codebook of tiles that are far apart, and the latent of the nearest columns."""
    codebook = spread_tiles(tiles, columns, generator)
    empty = tiles.new_zeros(columns, tiles.shape[1])
    return codebook, nearest_column(Quadratic(codebook, tiles), empty)


def sparse_coding(tiles: Tensor, columns: int, generator: Generator) -> Start:
    """Return factors of small error and small ``sum(abs(Z))``, with columns of C in the unit ball.

    This objective is smoother than one with a fixed number of nonzeros (Olshausen and Field, Nature
    1996): most starting codebooks lead to a good one.
    """
    codebook = short_rows()(spread_tiles(tiles, columns, generator).T).T
    penalty = _PENALTY * float(tiles.norm(dim=0).mean())
    result = solve(
        tiles,
        (codebook, tiles.new_zeros(columns, tiles.shape[1])),
        update_latent=shrink(penalty, steps=20),
        update_codebook=gradient_step(short_rows(), steps=20),
        penalty=lambda codebook, latent: 2 * penalty * float(latent.abs().sum(dtype=torch.float64)),
        iterations=150,
        tolerance=1e-4,
    )
    return result.codebook, result.latent


def directions(tiles: Tensor, columns: int, share: float, generator: Generator) -> Tensor:
    """Return random vectors, (d, columns), all of a length in proportion to that of the tiles.

    Their length is ``share`` times the root mean square norm of the tiles.
    """
    normal = torch.randn(len(tiles), columns, generator=generator, dtype=torch.float64).to(tiles)
    length = share * tiles.square().sum(dim=0).mean().sqrt()
    scaled: Tensor = normal / normal.norm(dim=0).clamp_min(torch.finfo(tiles.dtype).tiny) * length
    return scaled


def replace_column(tiles: Tensor, codebook: Tensor, latent: Tensor, attempt: int) -> Start:
    """Return factors in which a codebook column of little energy is fitted to the worst tile.

    This leads out of a local minimum in which two columns share the work of one.

    Parameters
    ----------
    tiles
        Tiles W, (d, n).
    codebook, latent
        Factors C (d, k) and Z (k, n).
    attempt
        Number of the attempt, from 0: the first replaces the weakest column, the next one the
        second weakest, and so on, and after all columns the weakest again.
    """
    energy = latent.square().sum(dim=1) * codebook.square().sum(dim=0)
    latent = latent.clone()
    latent[energy.argsort()[attempt % len(energy)]] = 0
    latent = use_every_row(Quadratic(codebook, tiles), latent)
    return least_squares(Quadratic(latent.T, tiles.T), codebook.T).T, latent
