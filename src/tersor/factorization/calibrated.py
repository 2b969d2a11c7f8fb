# SPDX-License-Identifier: Apache-2.0
"""Solve for rate-aware factors that minimise the error of a layer's output.

With H = E[x xT] of the inputs x, an error E of the weights has the cost tr(E H ET). The tiles of
one position t of all weight rows are solved together, position after position, as in GPTQ (Frantar
et al., 2022) and LDLQ (Chee et al., 2023): the positions after t compensate for the error of
position t. Let U be the upper triangle of H^-1 = UT U (Cholesky). If the later positions compensate
as well as real numbers can, an error e of position t costs ``e (U_tt^T U_tt)^-1 eT`` and changes
the values that they approximate by ``-e U_tt^-1 U_t,later``. Within a position the search is that
of `rate_aware`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tersor import _native
from tersor.coding.rate import LARGEST, analyse
from tersor.factorization.initialize import principal_axes
from tersor.factorization.rate_aware import (
    COLUMN_ELEMENT_BITS,
    LAGRANGIAN,
    ROW_BITS,
    STATES,
    Coder,
    at_8_bits,
    is_heavy,
    round_codebook,
    spacing,
)
from tersor.factorization.solve import Result, Start
from tersor.factorization.updates import best_binary
from tersor.tiling import Tiling, coding_order, natural_order

_SWEEPS = 2
"""Number of searches through the rows of the latent at a position, at the same costs."""

_DEALS = 8
"""Number of searches through the binary latent of a position."""

_REFIT_STEPS = 6
"""Number of conjugate-gradient steps that refit a codebook, from a start close to the minimum."""


@dataclass(frozen=True)
class Metric:
    """The cost of an error of the weights, for each of T positions of tiles of d elements.

    Parameters
    ----------
    moments
        H, shape (T d, T d), positive definite, scaled so that the mean of its diagonal is 1.
    local
        The metric (U_tt^T U_tt)^-1 of each position, (T, d, d).
    feedback
        U_tt^-1 U_t of each position, (T, d, T d); the columns before position t have no meaning.
    """

    moments: Tensor
    local: Tensor
    feedback: Tensor

    @staticmethod
    def of(moments: Tensor, d: int) -> Metric:
        """Return the metric of second moments (m, m); m is padded to a multiple of d."""
        m = moments.shape[0]
        padded = -(-m // d) * d
        mean = moments.diagonal().double().mean()
        full = torch.eye(padded, dtype=torch.float64)
        full[:m, :m] = moments.double() / mean
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(full))
        upper = torch.linalg.cholesky(inverse, upper=True)
        blocks = upper.reshape(padded // d, d, padded)
        own = torch.stack([b[:, t * d : (t + 1) * d] for t, b in enumerate(blocks)])
        feedback = torch.linalg.solve_triangular(own, blocks, upper=True)
        local = torch.cholesky_inverse(own.transpose(1, 2).contiguous())
        return Metric(full.float(), local.float(), feedback.float())


def solve_calibrated(
    weight: Tensor,
    moments: Tensor,
    tile: int,
    *,
    states: int = STATES,
    iterations: int = 4,
) -> Result:
    """Return factors of a weight that minimise the output error and the bits.

    Parameters
    ----------
    weight
        The weight divided by the step size, float32, shape (rows, ...).
    moments
        Positive definite second moments H of the inputs, (m, m), with m elements in a flattened
        row.
    tile
        Tile size d.
    states
        States of the trellis, as in `tersor.factorization.rate_aware.solve_rate_aware`.
    iterations
        Largest number of rounds, each an update of the latent and of the codebook; default 4.

    Returns
    -------
    Result
        As `tersor.factorization.rate_aware.solve_rate_aware` returns, columns in coding order. The
        objective is the cost of the error, in units of the mean diagonal of H, and λ times the
        bits.
    """
    tiling, rows = Tiling(tuple(weight.shape), tile), weight.shape[0]
    metric = Metric.of(moments, tile)
    tiles = coding_order(tiling.split(weight), rows)
    coder = CalibratedCoder(tiling.slices, states)
    codebook = _start(tiles, metric)
    latent = _sweep(tiles, codebook, None, metric, coder)
    best, history = (codebook, latent), [float("inf")]
    for _ in range(iterations):
        exact = _refit(tiles, codebook, latent, metric)
        codebook = round_codebook(exact, latent.square().sum(dim=1))
        latent = _drop(tiles, codebook, latent, metric, coder)
        value = _cost(tiles, codebook, latent, metric) + coder.penalty(codebook, latent)
        if value < min(history):
            best = codebook, latent
        history.append(value)
        if not bool(latent.any()) or value > 0.999 * min(history[:-1]):
            break
        latent = _sweep(tiles, codebook, latent, metric, coder)
    codebook, latent = best
    return Result(codebook, coder.sliced(latent), tuple(history[1:]), "iteration limit")


def solve_binary(
    weight: Tensor, moments: Tensor, tile: int, start: Start, *, iterations: int = 4
) -> Start:
    """Return a codebook and a binary latent with at most the output error of the start.

    Parameters
    ----------
    weight
        The weight in units of the codebook, float32, shape (rows, ...).
    moments
        Positive definite second moments H of the inputs, (m, m), with m elements in a flattened
        row.
    tile
        Tile size d.
    start
        Codebook (d, k) and binary latent (k, n) to start from, in natural order.
    iterations
        Number of rounds, each an update of the latent and of the codebook; default 4.

    Returns
    -------
    tuple
        Codebook (d, k) and binary latent (k, n), in natural order.
    """
    tiling, rows = Tiling(tuple(weight.shape), tile), weight.shape[0]
    metric, tiles = Metric.of(moments, tile), coding_order(tiling.split(weight), rows)
    codebook, latent = start[0], coding_order(start[1], rows)
    generator = torch.Generator().manual_seed(0)

    def search(_: int, gram: Tensor, target: Tensor, known: Tensor) -> Tensor:
        return best_binary(gram, target, known, _DEALS, generator)

    best, history = (codebook, latent), [_cost(tiles, codebook, latent, metric)]
    for _ in range(iterations):
        latent = _by_positions(tiles, codebook, latent, metric, search)
        codebook = at_8_bits(_refit(tiles, codebook, latent, metric))
        value = _cost(tiles, codebook, latent, metric)
        if value < min(history):
            best = codebook, latent
        history.append(value)
    return best[0], natural_order(best[1], rows)


class CalibratedCoder(Coder):
    """A `Coder` of latents that are sorted by position across all slices."""

    rows: tuple[int, ...]

    def sliced(self, latent: Tensor) -> Tensor:
        """Return the latent in coding order, which sorts the columns within each slice."""
        if len(self.rows) == 1:
            return latent
        return coding_order(natural_order(latent, sum(self.rows)), self.rows)

    def analyse(self, latent: Tensor) -> _native.Analysis:
        """Return the bits of a latent, and the costs for the next search."""
        if self._last is None or self._last[0] is not latent:
            self._last = latent, analyse(self.sliced(latent), self.rows, self.states)
        return self._last[1]


def _start(tiles: Tensor, metric: Metric) -> Tensor:
    """Return a codebook of uncorrelated axes, orthonormal in the mean metric of the positions.

    Each axis is scaled to its grid spacing.
    """
    triangle = torch.linalg.cholesky(metric.local.double().mean(dim=0))
    whitened = (triangle.T @ tiles.double()).float()
    axes = principal_axes(whitened)
    variance = (axes.T @ whitened).square().mean(dim=1)
    columns = torch.linalg.solve_triangular(triangle.T, axes.double(), upper=True)
    codebook: Tensor = (columns * spacing(variance, heavy=is_heavy(tiles))).float()
    return codebook


def _sweep(
    tiles: Tensor, codebook: Tensor, latent: Tensor | None, metric: Metric, coder: CalibratedCoder
) -> Tensor:
    """Return a latent, searched on the trellis position after position.

    Each position compensates for the errors of the positions before it. The latent that is given
    says the costs; without one they are usual ones for magnitudes like those of plain rounding.
    """
    (d, n), k, rows = tiles.shape, codebook.shape[1], sum(coder.rows)
    positions = n // rows
    if latent is None:
        grams = codebook.T @ metric.local @ codebook
        wanted = tiles.reshape(d, positions, rows).transpose(0, 1)
        nearest = [
            rounded(codebook.T @ (h @ w), g)
            for h, w, g in zip(metric.local, wanted, grams, strict=True)
        ]
        latent = torch.stack(nearest, dim=1).reshape(k, n)
        indices = latent if coder.states == 1 else (latent / 2).round()
        analysis = analyse(coder.sliced(indices), coder.rows, expected=coder.states)
    else:
        analysis = coder.analyse(latent)
    carried = np.zeros((len(coder.rows), k), np.int32)

    def search(t: int, gram: Tensor, target: Tensor, known: Tensor) -> Tensor:
        first, found = 0, []
        for length, states in zip(coder.rows, carried, strict=True):
            run = slice(first, first + length)
            own = known[:, run].contiguous()
            _native.search_run(
                target[:, run].contiguous().numpy(),
                gram.numpy(),
                own.numpy(),
                analysis,
                first * positions + t * length,
                states,
                coder.states,
                LAGRANGIAN,
                _SWEEPS,
            )
            found.append(own)
            first += length
        return torch.cat(found, dim=1)

    return _by_positions(tiles, codebook, latent, metric, search)


def _by_positions(
    tiles: Tensor,
    codebook: Tensor,
    latent: Tensor,
    metric: Metric,
    search: Callable[[int, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Return a latent, searched position after position.

    ``search(t, gram, target, known)`` returns the latent of position t, given the Gram matrix, the
    target and the known latent of that position.
    """
    d, n = tiles.shape
    grams = codebook.T @ metric.local @ codebook
    wanted = tiles.reshape(d, len(grams), -1).transpose(0, 1).clone()  # (T, d, rows)
    result = latent.reshape(len(latent), *wanted.shape[::2]).clone()
    for t, gram in enumerate(grams):
        target = codebook.T @ (metric.local[t] @ wanted[t])
        result[:, t] = search(t, gram, target, result[:, t])
        error = wanted[t] - codebook @ result[:, t]
        later = metric.feedback[t][:, (t + 1) * d :]
        if later.shape[1]:
            wanted[t + 1 :] -= (later.T @ error).reshape(-1, d, wanted.shape[2])
    return result.reshape(-1, n)


def rounded(target: Tensor, gram: Tensor) -> Tensor:
    """Return a latent whose rows are rounded, each as if it were the only one."""
    curvature = gram.diagonal().clamp_min(torch.finfo(torch.float32).tiny)
    return (target / curvature[:, None]).round().clamp(-LARGEST, LARGEST).contiguous()


def _by_rows(tiles: Tensor, metric: Metric) -> Tensor:
    """Return tiles (d, T rows) in coding order as a matrix (rows, T d)."""
    d, positions = tiles.shape[0], len(metric.local)
    return tiles.reshape(d, positions, -1).permute(2, 1, 0).reshape(-1, positions * d)


def _from_rows(matrix: Tensor, d: int) -> Tensor:
    """Return a matrix (rows, T d) as tiles (d, T rows): the inverse of `_by_rows`."""
    return matrix.reshape(len(matrix), -1, d).permute(2, 1, 0).reshape(d, -1)


def _cost(tiles: Tensor, codebook: Tensor, latent: Tensor, metric: Metric) -> float:
    """Return the sum of ``e H eT`` over the errors e of all weight rows."""
    error = _by_rows(tiles - codebook @ latent, metric)
    return float(((error @ metric.moments) * error).sum(dtype=torch.float64))


def _refit(tiles: Tensor, codebook: Tensor, latent: Tensor, metric: Metric) -> Tensor:
    """Return the codebook of least cost, by conjugate gradients."""
    d = len(tiles)
    scale = (
        latent.square().sum(dim=1).clamp_min(1).rsqrt()
    )  # Jacobi preconditioner, as a change of variables
    scaled = latent * scale[:, None]

    def gradient(tiles: Tensor) -> Tensor:
        return _from_rows(_by_rows(tiles, metric) @ metric.moments, d) @ scaled.T

    x = codebook / scale
    residual = gradient(tiles - x @ scaled)
    direction, norm = residual.clone(), residual.square().sum(dtype=torch.float64)
    for _ in range(_REFIT_STEPS):
        if not norm > 0:
            break
        image = gradient(direction @ scaled)
        step_size = norm / (direction * image).sum(dtype=torch.float64).clamp_min(1e-30)
        x = x + step_size.float() * direction
        residual = residual - step_size.float() * image
        before, norm = norm, residual.square().sum(dtype=torch.float64)
        direction = residual + (norm / before).float() * direction
    return x * scale


def _drop(
    tiles: Tensor, codebook: Tensor, latent: Tensor, metric: Metric, coder: CalibratedCoder
) -> Tensor:
    """Return the latent with zeros in the rows whose bits cost more than the error they avoid."""
    d, positions = len(tiles), len(metric.local)
    slope = codebook.T @ _from_rows(_by_rows(tiles - codebook @ latent, metric) @ metric.moments, d)
    # The quadratic part of a row's error, only within positions: that is nearly all of it.
    blocks = metric.moments.reshape(positions, d, positions, d).diagonal(dim1=0, dim2=2)
    curvatures = torch.einsum("dr,det,er->rt", codebook, blocks, codebook)
    own = (curvatures * latent.reshape(len(latent), positions, -1).square().sum(dim=2)).sum(dim=1)
    error = 2 * (latent * slope).sum(dim=1) + own
    saved = LAGRANGIAN * (coder.bits(latent) + ROW_BITS + COLUMN_ELEMENT_BITS * d)
    keep = error > torch.from_numpy(saved).float()
    return latent if bool(keep.all()) else latent * keep[:, None]
