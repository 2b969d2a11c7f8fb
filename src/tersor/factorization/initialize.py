"""Starting points: where the solver sets out from.

All are deterministic for a generator, which draws on the CPU whatever the device of the tiles.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from tersor.factorization.products import inner
from tersor.factorization.projections import short_rows
from tersor.factorization.solve import Quadratic, Start, gradient_step, least_squares, solve
from tersor.factorization.updates import nearest_column, shrink, use_every_row

_PRICE = 0.1
"""Of a unit of latent in `sparse_coding`, per mean norm of a tile; half and twice do as well."""


def principal_components(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors of the tiles' covariance, largest first, signs fixed, and their variances.

    They are orthonormal, (d, d); the variances, (d,), are float64.
    """
    values, vectors = torch.linalg.eigh(inner(tiles.T, tiles.T, torch.float64))
    vectors = vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    axes: Tensor = vectors * torch.where(largest < 0, -1.0, 1.0)
    return axes.to(tiles.dtype), values.flip(0).clamp_min(0) / tiles.shape[1]


def principal_axes(tiles: Tensor) -> Tensor:
    """Eigenvectors of the tiles' covariance, as in `principal_components`."""
    return principal_components(tiles)[0]


def unit_axes(tiles: Tensor, columns: int) -> Start:
    """Leading principal axes, of such lengths that coefficients have unit mean squares, and those.

    Axes along which there is nothing get the length of the smallest normal number.
    """
    axes = principal_axes(tiles)[:, :columns]
    coefficients = axes.T @ tiles
    lengths = coefficients.square().mean(dim=1).sqrt().clamp_min(torch.finfo(tiles.dtype).tiny)
    return axes * lengths, coefficients / lengths[:, None]


def orthonormal(rows: int, columns: int, like: Tensor, generator: Generator) -> Tensor:
    """Random orthonormal columns, (rows, columns), of the type and device of ``like``."""
    normal = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    axes: Tensor = torch.linalg.qr(normal).Q
    return axes.to(like)


def spread_tiles(tiles: Tensor, columns: int, generator: Generator) -> Tensor:
    """Tiles that lie far apart, (d, columns): k-means++ (Arthur and Vassilvitskii, SODA 2007).

    Each is drawn with a probability proportional to its squared distance from the ones before it.
    """
    chosen = torch.zeros(columns, dtype=torch.long)
    distance = torch.full((tiles.shape[1],), torch.inf, dtype=torch.float64)
    draws = torch.rand(columns, generator=generator, dtype=torch.float64)
    for j, draw in enumerate(draws):
        # The first is drawn uniformly; so is any other once all tiles are taken.
        weights = distance if 0 < distance.sum() < torch.inf else torch.ones_like(distance)
        cumulative = weights.cumsum(0)
        index = torch.searchsorted(cumulative, draw * cumulative[-1], right=True)
        chosen[j] = index.clamp_max(tiles.shape[1] - 1)
        gap = (tiles - tiles[:, chosen[j], None]).square().sum(dim=0)
        distance = torch.minimum(distance, gap.double().cpu())
    return tiles[:, chosen.to(tiles.device)]


def clusters(tiles: Tensor, columns: int, generator: Generator) -> Start:
    """Codebook of tiles that lie far apart; each tile takes the nearest."""
    codebook = spread_tiles(tiles, columns, generator)
    empty = tiles.new_zeros(columns, tiles.shape[1])
    return codebook, nearest_column(Quadratic(codebook, tiles), empty)


def sparse_coding(tiles: Tensor, columns: int, generator: Generator) -> Start:
    """Factors of small error and small ``sum(abs(Z))``, the codebook's columns in the unit ball.

    The landscape of this problem is smoother than with a given number of nonzeros (Olshausen and
    Field, Nature 1996): most starting codebooks lead to a good one.
    """
    codebook = short_rows()(spread_tiles(tiles, columns, generator).T).T
    price = _PRICE * float(tiles.norm(dim=0).mean())
    result = solve(
        tiles,
        (codebook, tiles.new_zeros(columns, tiles.shape[1])),
        update_latent=shrink(price, steps=20),
        update_codebook=gradient_step(short_rows(), steps=20),
        penalty=lambda codebook, latent: 2 * price * float(latent.abs().sum(dtype=torch.float64)),
        iterations=150,
        tolerance=1e-4,
    )
    return result.codebook, result.latent


def directions(tiles: Tensor, columns: int, share: float, generator: Generator) -> Tensor:
    """Random directions, (d, columns), of a length that is a share of the tiles' (mean square)."""
    normal = torch.randn(len(tiles), columns, generator=generator, dtype=torch.float64).to(tiles)
    length = share * tiles.square().sum(dim=0).mean().sqrt()
    scaled: Tensor = normal / normal.norm(dim=0).clamp_min(torch.finfo(tiles.dtype).tiny) * length
    return scaled


def replace_column(tiles: Tensor, codebook: Tensor, latent: Tensor, attempt: int) -> Start:
    """Factors with a column of little energy replaced by what the worst tile lacks.

    The weakest column at the first attempt, then the next: a way out of a local minimum where two
    columns share the work of one.
    """
    energy = latent.square().sum(dim=1) * codebook.square().sum(dim=0)
    latent = latent.clone()
    latent[energy.argsort()[attempt % len(energy)]] = 0
    latent = use_every_row(Quadratic(codebook, tiles), latent)
    return least_squares(Quadratic(latent.T, tiles.T), codebook.T).T, latent
