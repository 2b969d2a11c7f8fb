"""The default factorization: least distortion + price * bits, with the bits that the coder spends.

All lengths are in units of the step, the spacing of the latent's grid, so that one number decides
the trade-off and the price of a bit is a constant: at high rate the uniform grid of step s has the
squared error s**2 / 12 per latent and halving it costs one bit, hence d(error)/d(bits) =
-2 ln 2 s**2 / 12 = -0.1155 s**2.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tersor.factorization.initialize import principal_axes
from tersor.factorization.products import inner
from tersor.factorization.rate import LARGEST, Floats, count_magnitudes, fit, row_bits
from tersor.factorization.solve import Quadratic, Result, least_squares, solve
from tersor.factors import EXACT_INTEGERS, Factors, largest_sum
from tersor.tiling import Tiling, as_float32

PRICE = math.log(2) / 6
"""Squared error, in units of the step squared, that a bit is worth: the value for high rates. On
Gaussian sources and layers of ResNet-20, at 0.5 to 4 bits, anything from 0.1 to 0.16 is within
0.05 dB of it at equal bits."""

CODEBOOK_LARGEST = 127
"""Codebooks are integers of 8 bits."""

_ROW_BITS = 16
"""Bits of the entropy model of one row of the latent."""

_CODEBOOK_BITS = 6
"""About what an element of a codebook costs."""

_FINEST = 24
"""Codebooks are multiples of 2**-24 at the finest."""

_SMALLEST_STEP = 2.0**-110
"""Scales, which are smaller than the step by the codebook's 8 bits, must be normal in float32."""

_COLUMNS_AT_ONCE = 16384
"""Tiles that are updated together: the working set of a block stays in the cache."""


def thresholds(bits: Floats, price: Floats) -> Floats:
    """Where the cheapest magnitude of a latent changes.

    Parameters
    ----------
    bits
        Cost of the magnitudes 0 to m, shape (rows, m + 1).
    price
        Squared error that a bit is worth, per row, in units of that row's curvature.

    Returns
    -------
    Floats
        Ascending thresholds, shape (rows, m): the integer that minimises ``(u - z)**2 + price *
        bits(z)`` has the magnitude ``(abs(u) > thresholds).sum()``. Magnitude t beats j < t
        where u is above ``(cost(t) - cost(j)) / (2 (t - j))`` with ``cost(t) = t**2 + price *
        bits(t)``; only neighbours within 3, and zero, can matter for costs that rise smoothly.
    """
    rows, width = bits.shape
    cost = np.arange(width) ** 2 + price[:, None] * bits
    magnitudes = np.arange(1, width)

    def beats_all_below(target: int) -> Floats:
        """For each t: where t + target beats every magnitude below t."""
        high = np.minimum(magnitudes + target, width - 1)
        worst = np.full((rows, width - 1), -np.inf)
        for below in (1, 2, 3, width):
            low = np.maximum(magnitudes - below, 0)
            worst = np.maximum(worst, (cost[:, high] - cost[:, low]) / (2 * (high - low)))
        return worst

    first = np.min([beats_all_below(target) for target in range(3)], axis=0)
    return np.maximum.accumulate(np.maximum(first, 0), axis=1)


def update_latent(quadratic: Quadratic, latent: Tensor) -> Tensor:
    """Best integers, row by row, under distortion + price * bits of the model fitted to them.

    Each row in turn takes the gradient step of its own curvature and is projected onto the
    integers, weighing what each of them costs: block coordinate descent.
    """
    curvature = quadratic.gram.diagonal().clamp_min(torch.finfo(latent.dtype).tiny)
    price = PRICE / curvature.cpu().numpy().astype(np.float64)
    bits = fit(count_magnitudes(latent)).bits()
    table = torch.from_numpy(thresholds(bits, price)).to(latent)
    latent = latent.clone()
    for start in range(0, latent.shape[1], _COLUMNS_AT_ONCE):
        block = latent[:, start : start + _COLUMNS_AT_ONCE]
        target = quadratic.target[:, start : start + _COLUMNS_AT_ONCE]
        for row in range(len(block)):
            slope = target[row] - quadratic.gram[row] @ block
            wanted = block[row] + slope / curvature[row]
            block[row] = torch.bucketize(wanted.abs(), table[row]).copysign(wanted)
    return latent


def drop_rows(quadratic: Quadratic, latent: Tensor, column_bits: float) -> Tensor:
    """Latent with zeros in the rows whose bits outweigh the error that they avoid.

    This is what sets the rank. ``column_bits`` are saved with the row's own and its model's.
    """
    slope = quadratic.target - quadratic.gram @ latent
    linear = (latent * slope).sum(dim=1, dtype=torch.float64)
    error = 2 * linear + quadratic.gram.diagonal() * (latent**2).sum(dim=1)
    saved = PRICE * (row_bits(latent) + _ROW_BITS + column_bits)
    return latent * (error > torch.from_numpy(saved).to(error))[:, None]


def codebook_exponent(codebook: Tensor) -> int:
    """Largest e for which every element is an integer multiple of 2**e; 0 for an all-zero one."""
    integers = (codebook.double() * 2.0**_FINEST).round().to(torch.int64).abs().cpu().numpy()
    union = int(np.bitwise_or.reduce(integers, axis=None)) if integers.size else 0
    return (union & -union).bit_length() - 1 - _FINEST if union else 0


def round_codebook(codebook: Tensor, energy: Tensor) -> Tensor:
    """Codebook rounded to multiples of the power of two that balances its error and its bits.

    Rounding to multiples of q adds the squared error ``q**2 / 12`` times the energy of the latent
    for each of the d rows, and halving q costs a bit for each of the d k elements; the sum of error
    and priced bits is least at ``q**2 = 6 price k / (ln 2 energy)``. Columns without energy, which
    are unused, become zero.
    """
    used = energy > 0
    codebook = codebook * used
    largest = float(codebook.abs().amax()) if codebook.numel() else 0.0
    if largest == 0:
        return codebook
    exponent = 0.5 * math.log2(6 * PRICE * int(used.sum()) / (math.log(2) * float(energy.sum())))
    coarse_enough = math.ceil(math.log2(largest / CODEBOOK_LARGEST))
    step = 2.0 ** max(round(exponent), coarse_enough, -_FINEST)
    return (codebook / step).round() * step


def update_codebook(quadratic: Quadratic, transposed: Tensor) -> Tensor:
    """Least squares, then `round_codebook`."""
    exact = least_squares(quadratic, transposed)
    return round_codebook(exact.T, quadratic.gram.diagonal()).T


def codebook_bits(codebook: Tensor) -> float:
    """Bits of a rounded codebook."""
    integers = codebook * 2.0 ** -codebook_exponent(codebook)
    return float(row_bits(integers.reshape(1, -1)).sum())


def penalty(codebook: Tensor, latent: Tensor) -> float:
    """Price of the bits of both factors and of the entropy models, unused rows left out."""
    live = latent.any(dim=1)
    if not bool(live.any()):
        return 0.0
    latent_bits = float(row_bits(latent[live]).sum()) + _ROW_BITS * int(live.sum())
    return PRICE * (latent_bits + codebook_bits(codebook[:, live]))


def solve_rate_aware(tiles: Tensor, *, iterations: int = 8, tolerance: float = 1e-3) -> Result:
    """Factors of tiles that are given in units of the step.

    Parameters
    ----------
    tiles
        The tiles divided by the step, (d, n) float32.
    iterations, tolerance
        As in `tersor.factorization.solve.solve`.

    Returns
    -------
    Result
        A codebook whose elements are multiples of a power of two, and an integer latent. Rows of
        the latent that are not worth their bits are zero.
    """
    axes = principal_axes(tiles)
    latent = inner(axes, tiles).round().clamp(-LARGEST, LARGEST)
    codebook = round_codebook(axes, (latent**2).sum(dim=1))

    def update(quadratic: Quadratic, latent: Tensor) -> Tensor:
        column_bits = _CODEBOOK_BITS * tiles.shape[0]
        return drop_rows(quadratic, update_latent(quadratic, latent), column_bits)

    return solve(
        tiles,
        codebook,
        latent,
        update_latent=update,
        update_codebook=update_codebook,
        penalty=penalty,
        iterations=iterations,
        tolerance=tolerance,
    )


def factorize_weight(weight: Tensor, tile: int, step: float) -> Factors:
    """Rate-aware factors of a weight.

    Parameters
    ----------
    weight
        Finite, of a floating-point type and at least one axis.
    tile
        Tile size d.
    step
        Spacing of the latent's grid, in units of the weight. It is enlarged where integers would
        become too large to be coded, or for their product to be exact.
    """
    tiling = Tiling(tuple(weight.shape), tile)
    tiles = tiling.split(as_float32(weight))
    scale = float(tiles.abs().amax())
    if scale == 0:
        return _factors(tiles.new_zeros(tile, 0), tiles.new_zeros(0, tiling.count), 1.0, weight)
    # The norm of a tile bounds its product with any axis. Divided first: squares may overflow.
    norm = scale * float((tiles / scale).norm(dim=0).amax())
    step = max(step, norm / (LARGEST - 1), _SMALLEST_STEP)
    while True:
        step = float(torch.tensor(step, dtype=torch.float32))
        result = solve_rate_aware(tiles / step)
        live = result.latent.any(dim=1)
        exponent = codebook_exponent(result.codebook)
        codebook, latent = result.codebook[:, live] * 2.0**-exponent, result.latent[live]
        if largest_sum(codebook, latent) <= EXACT_INTEGERS:
            return _factors(codebook, latent, step * 2.0**exponent, weight)
        step *= 1.5


def _factors(codebook: Tensor, latent: Tensor, scale: float, weight: Tensor) -> Factors:
    integers = codebook.to(torch.int16).contiguous(), latent.to(torch.int16).contiguous()
    return Factors(*integers, scale, tuple(weight.shape), weight.dtype)
