"""Rate-aware factors for the error of what a layer computes, not that of its weights.

With H = E[x xT] an error E of the weights costs tr(E H ET). The tiles of one position t of all
weight rows are solved together, position after position, as in GPTQ (Frantar et al., 2022) and
LDLQ (Chee et al., 2023): what position t cannot represent is made up for by the positions after it.
With the upper triangle U of H^-1 = UT U (Cholesky), an error e of position t, the later ones making
up for it as well as real numbers can, costs ``e (U_tt^T U_tt)^-1 eT`` and moves what they should be
by ``-e U_tt^-1 U_t,later``. Within a position the search is that of `rate_aware`.
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
    PRICE,
    ROW_BITS,
    STATES,
    Coder,
    at_8_bits,
    round_codebook,
    spacing,
)
from tersor.factorization.solve import Result, Start
from tersor.factorization.updates import best_signs
from tersor.tiling import Tiling, coding_order, natural_order

_SWEEPS = 2
"""Times that the rows of a position are gone through, from one set of prices."""

_DEALS = 8
"""Times that the signs of a position are gone through."""

_REFIT_STEPS = 6
"""Steps of conjugate gradients in a codebook's refit; it starts close to the minimum."""


@dataclass(frozen=True)
class Metric:
    """What an error costs, cut by positions.

    Parameters
    ----------
    moments
        H, shape (T d, T d), positive definite, in units in which the mean of its diagonal is 1.
    local
        The metric (U_tt^T U_tt)^-1 of each position, (T, d, d).
    feedback
        U_tt^-1 U_t, (T, d, T d); what stands before position t is not to be used.
    """

    moments: Tensor
    local: Tensor
    feedback: Tensor

    @staticmethod
    def of(moments: Tensor, d: int) -> Metric:
        """Metric of second moments (m, m), m being padded to a multiple of d."""
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
    """Factors of a weight that is given in units of the step.

    Parameters
    ----------
    weight
        The weight divided by the step, float32, shape (rows, ...).
    moments
        Positive definite second moments of the inputs, (m, m).
    tile
        Tile size d.
    states, iterations
        States of the trellis; rounds of latent and codebook.

    Returns
    -------
    Result
        As `tersor.factorization.rate_aware.solve_rate_aware`, columns in coding order. The
        objective is the cost of the error, in units of H's mean diagonal, and the priced bits.
    """
    tiling, rows = Tiling(tuple(weight.shape), tile), weight.shape[0]
    metric = Metric.of(moments, tile)
    tiles = coding_order(tiling.split(weight), rows)
    coder = _Coder(tiling.slices, states)
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


def solve_signs(
    weight: Tensor, moments: Tensor, tile: int, start: Start, *, iterations: int = 4
) -> Start:
    """Sums of signs: codebook and latent, in natural order, better than those at the start.

    Parameters
    ----------
    weight
        In units of the codebook, float32, shape (rows, ...).
    moments
        Positive definite second moments of the inputs, (m, m).
    tile
        Tile size d.
    start
        Codebook (d, k) and signs (k, n) to start from.
    iterations
        Rounds of latent and codebook.
    """
    tiling, rows = Tiling(tuple(weight.shape), tile), weight.shape[0]
    metric, tiles = Metric.of(moments, tile), coding_order(tiling.split(weight), rows)
    codebook, latent = start[0], coding_order(start[1], rows)
    generator = torch.Generator().manual_seed(0)

    def search(_: int, gram: Tensor, target: Tensor, known: Tensor) -> Tensor:
        return best_signs(gram, target, known, _DEALS, generator)

    best, history = (codebook, latent), [_cost(tiles, codebook, latent, metric)]
    for _ in range(iterations):
        latent = _by_positions(tiles, codebook, latent, metric, search)
        codebook = at_8_bits(_refit(tiles, codebook, latent, metric))
        value = _cost(tiles, codebook, latent, metric)
        if value < min(history):
            best = codebook, latent
        history.append(value)
    return best[0], natural_order(best[1], rows)


class _Coder(Coder):
    """What latents cost that are ordered by position, whether or not they are coded in slices."""

    rows: tuple[int, ...]

    def sliced(self, latent: Tensor) -> Tensor:
        """The latent in coding order."""
        if len(self.rows) == 1:
            return latent
        return coding_order(natural_order(latent, sum(self.rows)), self.rows)

    def analyse(self, latent: Tensor) -> _native.Analysis:
        """What a latent costs, and prices for its improvement."""
        if self._last is None or self._last[0] is not latent:
            self._last = latent, analyse(self.sliced(latent), self.rows, self.states)
        return self._last[1]


def _start(tiles: Tensor, metric: Metric) -> Tensor:
    """Axes that are orthonormal under the positions' mean metric and leave latents uncorrelated."""
    triangle = torch.linalg.cholesky(metric.local.double().mean(dim=0))
    whitened = (triangle.T @ tiles.double()).float()
    axes = principal_axes(whitened)
    variance = (axes.T @ whitened).square().mean(dim=1)
    columns = torch.linalg.solve_triangular(triangle.T, axes.double(), upper=True)
    codebook: Tensor = (columns * spacing(variance)).float()
    return codebook


def _sweep(
    tiles: Tensor, codebook: Tensor, latent: Tensor | None, metric: Metric, coder: _Coder
) -> Tensor:
    """A latent, position after position, each making up for the errors of those before."""
    (d, n), k, rows = tiles.shape, codebook.shape[1], sum(coder.rows)
    positions = n // rows
    if latent is None:
        grams = codebook.T @ metric.local @ codebook
        wanted = tiles.reshape(d, positions, rows).transpose(0, 1)
        rounded = [
            _rounded(codebook.T @ (h @ w), g)
            for h, w, g in zip(metric.local, wanted, grams, strict=True)
        ]
        latent = torch.stack(rounded, dim=1).reshape(k, n)
        indices = latent if coder.states == 1 else (latent / 2).round()
        analysis = analyse(coder.sliced(indices), coder.rows)  # of plain rounding
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
                PRICE,
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
    """A latent, position after position, from its own of a position, its Gram matrix and target."""
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


def _rounded(target: Tensor, gram: Tensor) -> Tensor:
    curvature = gram.diagonal().clamp_min(torch.finfo(torch.float32).tiny)
    return (target / curvature[:, None]).round().clamp(-LARGEST, LARGEST).contiguous()


def _by_rows(tiles: Tensor, metric: Metric) -> Tensor:
    """Tiles (d, T rows) in coding order -> (rows, T d)."""
    d, positions = tiles.shape[0], len(metric.local)
    return tiles.reshape(d, positions, -1).permute(2, 1, 0).reshape(-1, positions * d)


def _from_rows(matrix: Tensor, d: int) -> Tensor:
    """The inverse of `_by_rows`."""
    return matrix.reshape(len(matrix), -1, d).permute(2, 1, 0).reshape(d, -1)


def _cost(tiles: Tensor, codebook: Tensor, latent: Tensor, metric: Metric) -> float:
    """Sum of ``e H eT`` over the weight rows."""
    error = _by_rows(tiles - codebook @ latent, metric)
    return float(((error @ metric.moments) * error).sum(dtype=torch.float64))


def _refit(tiles: Tensor, codebook: Tensor, latent: Tensor, metric: Metric) -> Tensor:
    """Codebook of least cost, by conjugate gradients."""
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
        step = norm / (direction * image).sum(dtype=torch.float64).clamp_min(1e-30)
        x = x + step.float() * direction
        residual = residual - step.float() * image
        before, norm = norm, residual.square().sum(dtype=torch.float64)
        direction = residual + (norm / before).float() * direction
    return x * scale


def _drop(tiles: Tensor, codebook: Tensor, latent: Tensor, metric: Metric, coder: _Coder) -> Tensor:
    """Latent with zeros in the rows whose bits outweigh the error that they avoid."""
    d, positions = len(tiles), len(metric.local)
    slope = codebook.T @ _from_rows(_by_rows(tiles - codebook @ latent, metric) @ metric.moments, d)
    # Of a row's own error the part within positions, which nearly is all.
    blocks = metric.moments.reshape(positions, d, positions, d).diagonal(dim1=0, dim2=2)
    curvatures = torch.einsum("dr,det,er->rt", codebook, blocks, codebook)
    own = (curvatures * latent.reshape(len(latent), positions, -1).square().sum(dim=2)).sum(dim=1)
    error = 2 * (latent * slope).sum(dim=1) + own
    saved = PRICE * (coder.bits(latent) + ROW_BITS + COLUMN_ELEMENT_BITS * d)
    keep = error > torch.from_numpy(saved).float()
    return latent if bool(keep.all()) else latent * keep[:, None]
