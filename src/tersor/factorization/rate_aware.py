# SPDX-License-Identifier: Apache-2.0
"""Solve for factors of least distortion + λ * bits, with bits counted as the coder spends them.

This is the default factorization. All lengths are in units of the step size, the spacing of the
latent's grid. Thus λ, the price of a bit, is a constant, and the step size alone decides the
trade-off.

Latents are the path through a trellis with two interleaved grids: the even numbers, and the odd
numbers with zero. The parities of the latents before decide from which grid the next one is taken
(dependent quantization, as in JPEG 2000 part 2 and VVC). A Viterbi search finds the cheapest path.
Scalar rounding loses up to 1.5 dB by the shape of its cells; a trellis of 64 states regains 1.3 dB
of it (Marcellin and Fischer, IEEE Trans. Commun. 38(1), 1990).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tersor import _native
from tersor.coding.rate import LARGEST, Floats, analyse, row_bits
from tersor.factorization.initialize import principal_components
from tersor.factorization.products import blocks, inner
from tersor.factorization.solve import Quadratic, Result, Start, least_squares, solve
from tersor.tiling import Rows

LAGRANGIAN = 0.3
"""Price λ of a bit: the squared error, in units of the squared step size, that a bit is worth. This
value is best at high rates with a trellis, for Gaussian sources. Rows of low rate get a finer grid,
see `spacing`."""

STATES = 32
"""Default number of states of the trellis."""

_GAUSSIAN = (3.5, 5, 7, 10, 20, 60), (0.8, 0.6, 0.5, 0.43, 0.37, 0.3)
_HEAVY = (4, 10), (0.25, 0.3)
"""Variances of rows in units of the price of a bit, and the best λ in units of their squared
spacing. With Gaussian rows of 1 bit a search at a λ of 0.3 to 0.5 comes close to a saddle point
at which the error is 0.7 dB larger, and leaves it slowly."""

_TAIL = 1.15
"""Least ratio of the mean square to the squared mean magnitude of heavy tails, in units of that of
Gaussian numbers."""

FINEST_SPACING = math.sqrt(LAGRANGIAN / max(_GAUSSIAN[1]))
"""Smallest spacing of a row, in units of the step size."""

CODEBOOK_LARGEST = 127
"""Largest magnitude of a codebook's integers, which have 8 bits."""

ROW_BITS = 4
"""Bits of each row of the latent besides those of its integers, since its scale must be learnt."""

COLUMN_ELEMENT_BITS = 6
"""Approximate bits of an element of a codebook."""

_HIGH_RATE = 6
"""Variance of a Gaussian weight of about 1.5 bits, in units of the price of a bit."""

_PATIENCE, _LENIENCE = 3, 0.6
"""In the first `_PATIENCE` updates the bits of a row count for `_LENIENCE` of their price in the
decision whether the row is kept."""

_ROWS_IN_TURN = 32
"""Largest number of latent rows that are updated one after the other. More rows are updated all at
once: codebooks that large are nearly orthogonal."""

_LARGE = 1 << 22
"""Number of elements above which a latent takes much memory."""

_FINEST = 24
"""Codebooks are multiples of 2**-24, or of a larger power of two."""


def spacing(variance: Tensor, *, heavy: bool) -> Tensor:
    """Return the grid spacing of each row, in units of the step size, from its variance.

    In units of the squared spacing of the row, the best λ is 0.3 for rows of 3 bits
    and more. For rows of 1 bit and less it is 0.8 for Gaussian ones (32 states), but 0.25 where
    weights differ in scale or have heavy tails, since the few large ones then decide.

    Parameters
    ----------
    variance
        Variance of each row in units of the squared step size.
    heavy
        Whether the tails of the weights are heavy.
    """
    logs = np.log((variance.double().clamp_min(1e-300) / LAGRANGIAN).numpy())
    ratios, prices = _HEAVY if heavy else _GAUSSIAN
    return torch.from_numpy(np.sqrt(LAGRANGIAN / np.interp(logs, np.log(ratios), prices)))


def is_heavy(tiles: Tensor) -> bool:
    """Return whether the tails are heavy, by the mean square and the mean magnitude."""
    magnitude = float(tiles.abs().sum(dtype=torch.float64)) / max(1, tiles.numel())
    square = float(tiles.square().sum(dtype=torch.float64)) / max(1, tiles.numel())
    return square * 2 > _TAIL * math.pi * magnitude**2


@dataclass
class Coder:
    """The settings of the coder of a latent, and the analysis of the latest latent.

    Parameters
    ----------
    rows
        Number of weight rows, or the number for each slice. The columns of the latent are in coding
        order, in runs of this length. None (default): all columns are one run.
    states
        States of the trellis, default 32; 1: no trellis.
    lagrangian
        Squared error, in units of the squared step size, that a bit is worth; default 0.3.
    """

    rows: Rows | None = None
    states: int = STATES
    lagrangian: float = LAGRANGIAN
    _last: tuple[Tensor, _native.Analysis] | None = field(default=None, repr=False)
    _updates: int = field(default=0, repr=False)

    def analyse(self, latent: Tensor) -> _native.Analysis:
        """Return the bits of a latent, and the costs for the next search."""
        if self._last is None or self._last[0] is not latent:
            self._last = latent, analyse(latent, self.rows or latent.shape[1], self.states)
        return self._last[1]

    def bits(self, latent: Tensor) -> Floats:
        """Return the bits of each row of a latent."""
        return np.asarray(self.analyse(latent).bits)

    def start(self, quadratic: Quadratic) -> Tensor:
        """Return a first latent, searched at usual λs for magnitudes of a rounded one."""
        self._updates = 0
        curvature = quadratic.gram.diagonal().clamp_min(torch.finfo(torch.float32).tiny)
        rounded = torch.empty(len(curvature), quadratic.wanted.shape[1])
        for columns in blocks(*rounded.shape):
            quotient = quadratic.targets(columns) / curvature[:, None]
            rounded[:, columns] = quotient.round_().clamp_(-LARGEST, LARGEST)
        indices = rounded if self.states == 1 else (rounded / 2).round_()
        rows = self.rows or indices.shape[1]
        return self.search(quadratic, rounded, analyse(indices, rows, expected=self.states))

    def update(self, quadratic: Quadratic, latent: Tensor) -> Tensor:
        """Return the best latent at the costs of this one.

        Rows whose bits cost more than the error they avoid become zero; this decides the rank. In
        the first updates, before codebook and costs suit each other, rows may cost more.
        """
        worth = self.lagrangian * (1.0 if self._updates >= _PATIENCE else _LENIENCE)
        self._updates += 1
        avoided = torch.zeros(len(latent), dtype=torch.float64)
        improved = self.search(quadratic, latent, self.analyse(latent), avoided=avoided)
        column_bits = COLUMN_ELEMENT_BITS * quadratic.basis.shape[0]
        keep = avoided > torch.from_numpy(worth * (self.bits(improved) + ROW_BITS + column_bits))
        if not bool(keep.all()):
            improved *= keep[:, None]
            self._last = None
        return improved

    def search(
        self,
        quadratic: Quadratic,
        latent: Tensor,
        analysis: _native.Analysis,
        importance: Tensor | None = None,
        avoided: Tensor | None = None,
    ) -> Tensor:
        """Return a latent that is searched, row by row, for the least distortion + λ * bits.

        Parameters
        ----------
        quadratic
            Squared error as a function of the latent.
        latent
            Latent (k, n), float32; while a row is searched the others are fixed.
        analysis
            Prices, from `analyse`.
        importance
            Factor by which the squared error of each element counts, float32, (k, n); by default 1.
        avoided
            Tensor (k,), float64, to which the squared error that each row avoids is added.
        """
        gram = quadratic.gram.contiguous()
        own = gram.diagonal().diag()
        at_once = len(gram) > _ROWS_IN_TURN
        result = torch.empty_like(latent, memory_format=torch.contiguous_format)
        for columns in blocks(*latent.shape):
            target = quadratic.targets(columns)
            z = latent[:, columns].clone(memory_format=torch.contiguous_format)
            _native.search(
                (target - inner(gram - own, z) if at_once else target).numpy(),
                (own if at_once else gram).numpy(),
                z.numpy(),
                analysis,
                columns.start,
                self.states,
                self.lagrangian,
                None if importance is None else importance[:, columns].contiguous().numpy(),
                torch.get_num_threads(),
            )
            result[:, columns] = z
            if avoided is not None:
                each = _native.avoided(
                    target.numpy(), gram.numpy(), z.numpy(), torch.get_num_threads()
                )
                avoided += torch.tensor(each, dtype=torch.float64)
            if latent.numel() > _LARGE:
                _native.release_memory()  # else the allocator keeps the memory of the block
        return result

    def penalty(self, codebook: Tensor, latent: Tensor) -> float:
        """Return λ times the bits of both factors, without unused rows and columns."""
        live = latent.any(dim=1)
        if not bool(live.any()):
            return 0.0
        latent_bits = float(self.bits(latent)[live.numpy()].sum()) + ROW_BITS * int(live.sum())
        return self.lagrangian * (latent_bits + codebook_bits(codebook[:, live]))


def codebook_exponent(codebook: Tensor) -> int:
    """Return the largest e such that all elements are multiples of 2**e; 0 if all are zero."""
    integers = (codebook.double() * 2.0**_FINEST).round().to(torch.int64).abs().cpu().numpy()
    union = int(np.bitwise_or.reduce(integers, axis=None)) if integers.size else 0
    return (union & -union).bit_length() - 1 - _FINEST if union else 0


def round_codebook(codebook: Tensor, energy: Tensor) -> Tensor:
    """Return the codebook rounded to multiples of a power of two q that balances error and bits.

    Rounding to multiples of q adds a squared error of ``q**2 / 12`` times the energy of the latent,
    for each of the d rows. Half of q costs one more bit for each of the d k elements. The sum of
    the error and λ times the bits is least at ``q**2 = 6 λ k / (ln 2 energy)``.

    Parameters
    ----------
    codebook
        C, shape (d, k).
    energy
        Sum of squares of each row of the latent, shape (k,). Columns of C with energy 0 are unused
        and become zero.
    """
    used = energy > 0
    codebook = codebook * used
    largest = float(codebook.abs().amax()) if codebook.numel() else 0.0
    if largest == 0:
        return codebook
    exponent = 0.5 * math.log2(
        6 * LAGRANGIAN * int(used.sum()) / (math.log(2) * float(energy.sum()))
    )
    coarse_enough = math.ceil(math.log2(largest / CODEBOOK_LARGEST))
    step_size = 2.0 ** max(round(exponent), coarse_enough, -_FINEST)
    return (codebook / step_size).round() * step_size


def update_codebook(quadratic: Quadratic, transposed: Tensor) -> Tensor:
    """Return the transposed codebook (k, d) of least squares, rounded by `round_codebook`."""
    exact = least_squares(quadratic, transposed)
    return round_codebook(exact.T, quadratic.gram.diagonal()).T


def at_8_bits(codebook: Tensor) -> Tensor:
    """Return the codebook rounded to multiples of a power of two, integers of 8 bits."""
    largest = float(codebook.abs().amax()) if codebook.numel() else 0.0
    if largest == 0:
        return codebook
    step_size = 2.0 ** max(math.ceil(math.log2(largest / CODEBOOK_LARGEST)), -_FINEST)
    return (codebook / step_size).round() * step_size


def codebook_bits(codebook: Tensor) -> float:
    """Return the bits of a rounded codebook."""
    integers = codebook * 2.0 ** -codebook_exponent(codebook)
    return float(row_bits(integers.T).sum())


def start(tiles: Tensor, coder: Coder) -> Start:
    """Return the starting factors of tiles: scaled eigenvectors, and a first latent.

    The codebook consists of the eigenvectors of the tiles' covariance, each as long as the grid
    spacing of its row, for heavy tails or not, refitted to the latent.
    """
    axes, variance = principal_components(tiles)
    codebook = axes * spacing(variance, heavy=is_heavy(tiles)).to(axes)
    latent = coder.start(Quadratic(codebook, tiles))
    return update_codebook(Quadratic(latent.T, tiles.T), codebook.T).T, latent


def solve_rate_aware(
    tiles: Tensor,
    rows: Rows,
    *,
    states: int = STATES,
    iterations: int | None = None,
    tolerance: float = 2e-4,
) -> Result:
    """Return factors of tiles that minimise distortion + λ * bits.

    Parameters
    ----------
    tiles
        The tiles divided by the step size, (d, n), float32, in coding order.
    rows
        Number of weight rows, or the number for each slice.
    states
        States of the trellis: 4, 8, 16, 32 (default) or 64; 1: scalar quantization.
    iterations, tolerance
        Limits as in `tersor.factorization.solve.solve`. The default of the first is 4, or 6 at
        rates below about 1.5 bits, at which costs take longer to settle. The default of the
        second, 2e-4, is so small that the number of iterations rarely changes with the step size:
        if it did, so would the bytes, up and down.

    Returns
    -------
    Result
        A codebook whose elements are multiples of a power of two, and an integer latent. Rows of
        the latent whose bits cost more than the error they avoid are zero.
    """
    coder = Coder(rows, states)
    if iterations is None:
        variance = float(tiles.square().sum(dtype=torch.float64)) / max(1, tiles.numel())
        iterations = 4 if variance > _HIGH_RATE * LAGRANGIAN else 6
    return solve(
        tiles,
        start(tiles, coder),
        update_latent=coder.update,
        update_codebook=update_codebook,
        penalty=coder.penalty,
        iterations=iterations,
        tolerance=tolerance,
    )
