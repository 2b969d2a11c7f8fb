# SPDX-License-Identifier: Apache-2.0
"""Solve for rate-aware factors of a weight whose inputs run along its first axis.

Such a layer computes ``W.T x``, as Hugging Face's Conv1D does, while tiles are segments of the
rows of W. With H = E[x xT], an error E of the weights costs ``tr(ET H E)``: the rows of W depend on
each other, and the tiles of one position, a run of the coder, are independent of all others. So a
run is solved after the other. Within it the errors of a few rows change what the later ones
approximate, as in `calibrated`: let U be the upper triangle of H^-1 = UT U, and B be rows that are
searched at once. Errors e of these cost ``eT (U_BB^T U_BB)^-1 e``, of which the diagonal is used,
and the later rows approximate ``(U_BB^-1 U_B,later)T e`` less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tersor import _native
from tersor.coding.rate import analyse
from tersor.factorization.calibrated import CalibratedCoder, rounded
from tersor.factorization.initialize import principal_axes
from tersor.factorization.rate_aware import (
    COLUMN_ELEMENT_BITS,
    LAGRANGIAN,
    ROW_BITS,
    STATES,
    is_heavy,
    round_codebook,
    spacing,
)
from tersor.factorization.solve import Result
from tersor.tiling import Tiling, coding_order

_SWEEPS = 2
"""Number of searches through the rows of the latent for each few columns, at the same costs."""


@dataclass(frozen=True)
class _Metric:
    """The cost of errors of a weight with r rows.

    Parameters
    ----------
    moments
        H, (r, r), positive definite, with a mean of 1 on the diagonal.
    local
        What an error of each row costs if the later rows make up for it, (1, r).
    feedback
        What an error of row i changes in row j, (r, r); up to the rows that are searched together
        with i it has no meaning.
    """

    moments: Tensor
    local: Tensor
    feedback: Tensor

    @staticmethod
    def of(moments: Tensor) -> _Metric:
        """Return the metric of second moments (r, r)."""
        full = moments.double() / moments.diagonal().double().mean()
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(full))
        upper = torch.linalg.cholesky(inverse, upper=True)
        feedback, local = torch.empty_like(full), list[Tensor]()
        for first in range(0, len(full), _native.CHUNK):
            rows = slice(first, first + _native.CHUNK)
            own = upper[rows, rows]
            feedback[rows] = torch.linalg.solve_triangular(own, upper[rows], upper=True)
            local.append(torch.cholesky_inverse(own.T.contiguous()).diagonal())
        return _Metric(full.float(), torch.cat(local)[None].float(), feedback.float())

    def times(self, tiles: Tensor) -> Tensor:
        """Return tiles (d, n) in coding order, multiplied by H in each run."""
        return (tiles.reshape(-1, len(self.moments)) @ self.moments).reshape(tiles.shape)


def solve_transposed(
    weight: Tensor, moments: Tensor, tile: int, *, states: int = STATES, iterations: int = 4
) -> Result:
    """Return factors that minimise the output error and the bits.

    Parameters
    ----------
    weight
        The weight divided by the step size, float32, shape (inputs, outputs).
    moments
        Positive definite second moments H of the inputs, (inputs, inputs).
    tile
        Tile size d.
    states, iterations
        As in `tersor.factorization.calibrated.solve_calibrated`.

    Returns
    -------
    Result
        As `tersor.factorization.calibrated.solve_calibrated` returns.
    """
    tiling, metric = Tiling(tuple(weight.shape), tile), _Metric.of(moments)
    tiles = coding_order(tiling.split(weight), len(weight))
    coder = CalibratedCoder(tiling.slices, states)
    codebook = _start(tiles, metric)
    latent = _sweep(tiles, codebook, None, metric, coder)
    best, history = (codebook, latent), [float("inf")]
    for _ in range(iterations):
        codebook = _refitted(tiles, latent, metric)
        latent = _drop(tiles, codebook, latent, metric, coder)
        error = tiles - codebook @ latent
        cost = float((error * metric.times(error)).sum(dtype=torch.float64))
        value = cost + coder.penalty(codebook, latent)
        if value < min(history):
            best = codebook, latent
        history.append(value)
        if not bool(latent.any()) or value > 0.999 * min(history[:-1]):
            break
        latent = _sweep(tiles, codebook, latent, metric, coder)
    codebook, latent = best
    return Result(codebook, coder.sliced(latent), tuple(history[1:]), "iteration limit")


def _start(tiles: Tensor, metric: _Metric) -> Tensor:
    """Return a codebook of axes that are uncorrelated where errors count as in `local`."""
    weighted = (tiles.reshape(-1, metric.local.shape[1]) * metric.local.sqrt()).reshape(tiles.shape)
    axes = principal_axes(weighted)
    variance = (axes.T @ weighted).square().mean(dim=1)
    scales = spacing(variance, heavy=is_heavy(tiles)) / metric.local.double().mean().sqrt()
    return axes * scales.to(axes)


def _sweep(
    tiles: Tensor,
    codebook: Tensor,
    latent: Tensor | None,
    metric: _Metric,
    coder: CalibratedCoder,
) -> Tensor:
    """Return a latent, searched run by run; the one that is given says the costs."""
    rows, gram = len(metric.moments), (codebook.T @ codebook).contiguous()
    if latent is None:
        latent = rounded(codebook.T @ tiles, gram)
        indices = latent if coder.states == 1 else (latent / 2).round()
        analysis = analyse(coder.sliced(indices), coder.rows, expected=coder.states)
    else:
        analysis = coder.analyse(latent)
    runs, found = tiles.shape[1] // rows, list[Tensor]()
    carried = np.zeros((len(coder.rows), len(latent)), np.int32)
    for run in range(runs):
        wanted = tiles[:, run * rows : (run + 1) * rows].clone()
        first = 0
        for length, ends in zip(coder.rows, carried, strict=True):
            start = run * rows + first
            own = latent[:, start : start + length].contiguous()
            _native.search_fed_run(
                wanted.numpy(),
                codebook.contiguous().numpy(),
                gram.numpy(),
                own.numpy(),
                analysis,
                first * runs + run * length,
                ends,
                coder.states,
                LAGRANGIAN,
                _SWEEPS,
                metric.local.numpy(),
                metric.feedback.numpy(),
                first,
            )
            found.append(own)
            first += length
    return torch.cat(found, dim=1)


def _refitted(tiles: Tensor, latent: Tensor, metric: _Metric) -> Tensor:
    """Return the codebook of least cost, rounded."""
    felt = metric.times(latent)
    gram, target = (felt @ latent.T).double(), (felt @ tiles.T).double()
    exact = (torch.linalg.pinv(gram, hermitian=True) @ target).T.float()
    return round_codebook(exact, latent.square().sum(dim=1))


def _drop(
    tiles: Tensor, codebook: Tensor, latent: Tensor, metric: _Metric, coder: CalibratedCoder
) -> Tensor:
    """Return the latent with zeros in the rows whose bits cost more than the error they avoid."""
    slope = codebook.T @ metric.times(tiles - codebook @ latent)
    own = codebook.square().sum(dim=0) * (metric.times(latent) * latent).sum(dim=1)
    error = 2 * (latent * slope).sum(dim=1) + own
    bits = coder.bits(latent) + ROW_BITS + COLUMN_ELEMENT_BITS * len(tiles)
    keep = error > torch.from_numpy(LAGRANGIAN * bits).float()
    return latent if bool(keep.all()) else latent * keep[:, None]
