"""The default factorization: least distortion + price * bits, with the bits that the coder spends.

All lengths are in units of the step, the spacing of the latent's grid, so that one number decides
the trade-off and the price of a bit is a constant. Latents come from a trellis: of two interleaved
grids, even numbers and zero with odd ones, the parities of the latents before say which one the
next is taken from (dependent quantization, as in JPEG 2000 part 2 and VVC), and a Viterbi search
finds the cheapest path. It gains what scalar rounding loses to the shape of its cells: up to
1.5 dB, of which 64 states get 1.3 (Marcellin and Fischer, IEEE Trans. Commun. 38(1), 1990).
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
from tersor.factorization.products import blocks
from tersor.factorization.solve import Quadratic, Result, Start, least_squares, solve
from tersor.tiling import Rows

PRICE = 0.3
"""Squared error, in units of the step squared, that a bit is worth: best for high rates with a
trellis, on Gaussian sources. Rows of low rate get a coarser grid instead, see `spacing`."""

STATES = 32
"""States of the trellis."""

CODEBOOK_LARGEST = 127
"""Codebooks are integers of 8 bits."""

ROW_BITS = 4
"""What a row of the latent costs besides: its scale has to be learnt."""

COLUMN_ELEMENT_BITS = 6
"""About what an element of a codebook costs."""

_ROWS_IN_TURN = 32
"""Latents of more rows are improved all at once: codebooks that large are nearly orthogonal."""

_LARGE = 1 << 22
"""Latents of more numbers take noticeable memory."""

_FINEST = 24
"""Codebooks are multiples of 2**-24 at the finest."""


def spacing(variance: Tensor) -> Tensor:
    """Grid spacing of a row, in steps, from its variance over the price of a bit.

    With a price of 0.3 in units of the row's own spacing rows above 1 bit are best coded, with
    0.17 those below 0.5 bits (Gaussian rows, 32 states).
    """
    ratio = (variance.double().clamp_min(1e-300) / PRICE).numpy()
    price = np.interp(np.log(ratio), np.log([1.2, 1.4, 1.8, 2.5]), [0.17, 0.2, 0.25, PRICE])
    return torch.from_numpy(np.sqrt(PRICE / price))


@dataclass
class Coder:
    """How the latent is coded, and what the last one was found to cost.

    Parameters
    ----------
    rows
        Weight rows, of each slice if there are several; the columns of the latent are in coding
        order, in runs of this length. All columns are one run if it is not known.
    states
        States of the trellis; 1: none.
    price
        Squared error, in units of the step squared, that a bit is worth.
    """

    rows: Rows | None = None
    states: int = STATES
    price: float = PRICE
    _last: tuple[Tensor, _native.Analysis] | None = field(default=None, repr=False)

    def analyse(self, latent: Tensor) -> _native.Analysis:
        """What a latent costs, and prices for its improvement."""
        if self._last is None or self._last[0] is not latent:
            self._last = latent, analyse(latent, self.rows or latent.shape[1], self.states)
        return self._last[1]

    def bits(self, latent: Tensor) -> Floats:
        """Bits of each row."""
        return np.asarray(self.analyse(latent).bits)

    def start(self, quadratic: Quadratic) -> Tensor:
        """A first latent, at the prices of plain rounding."""
        curvature = quadratic.gram.diagonal().clamp_min(torch.finfo(torch.float32).tiny)
        rounded = torch.empty(len(curvature), quadratic.wanted.shape[1])
        for columns in blocks(*rounded.shape):
            quotient = quadratic.targets(columns) / curvature[:, None]
            rounded[:, columns] = quotient.round_().clamp_(-LARGEST, LARGEST)
        return self.search(quadratic, rounded, self._prices_of_rounding(rounded))

    def _prices_of_rounding(self, rounded: Tensor) -> _native.Analysis:
        indices = rounded if self.states == 1 else (rounded / 2).round_()
        return analyse(indices, self.rows or indices.shape[1])

    def update(self, quadratic: Quadratic, latent: Tensor) -> Tensor:
        """Best latent at the prices of this one, without the rows that are not worth their bits.

        The latter is what sets the rank.
        """
        avoided = torch.zeros(len(latent), dtype=torch.float64)
        improved = self.search(quadratic, latent, self.analyse(latent), avoided=avoided)
        column_bits = COLUMN_ELEMENT_BITS * quadratic.basis.shape[0]
        keep = avoided > torch.from_numpy(
            self.price * (self.bits(improved) + ROW_BITS + column_bits)
        )
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
        """Row by row, the others fixed, the latent of least distortion + price * bits.

        The squared error of each element counts as much as its importance, float32 like the latent,
        if that is given. To ``avoided``, (k,), is added the squared error that each row avoids.
        """
        gram = quadratic.gram.contiguous()
        own = gram.diagonal().diag()
        at_once = len(gram) > _ROWS_IN_TURN
        result = torch.empty_like(latent, memory_format=torch.contiguous_format)
        for columns in blocks(*latent.shape):
            target = quadratic.targets(columns)
            z = latent[:, columns].clone(memory_format=torch.contiguous_format)
            _native.search(
                (torch.addmm(target, gram - own, z, alpha=-1) if at_once else target).numpy(),
                (own if at_once else gram).numpy(),
                z.numpy(),
                analysis,
                columns.start,
                self.states,
                self.price,
                None if importance is None else importance[:, columns].contiguous().numpy(),
                torch.get_num_threads(),
            )
            result[:, columns] = z
            if avoided is not None:
                gain = target.addmm_(gram, z, beta=2, alpha=-2)  # 2 (target - gram z)
                gain.addcmul_(gram.diagonal()[:, None], z)  # + diag(gram) z
                avoided += gain.mul_(z).sum(dim=1, dtype=torch.float64)
            if latent.numel() > _LARGE:
                _native.release_memory()  # the allocator would keep what the block took
        return result

    def penalty(self, codebook: Tensor, latent: Tensor) -> float:
        """Price of the bits of both factors, unused rows left out."""
        live = latent.any(dim=1)
        if not bool(live.any()):
            return 0.0
        latent_bits = float(self.bits(latent)[live.numpy()].sum()) + ROW_BITS * int(live.sum())
        return self.price * (latent_bits + codebook_bits(codebook[:, live]))


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


def at_8_bits(codebook: Tensor) -> Tensor:
    """Codebook rounded to multiples of a power of two, integers of 8 bits."""
    largest = float(codebook.abs().amax()) if codebook.numel() else 0.0
    if largest == 0:
        return codebook
    step = 2.0 ** max(math.ceil(math.log2(largest / CODEBOOK_LARGEST)), -_FINEST)
    return (codebook / step).round() * step


def codebook_bits(codebook: Tensor) -> float:
    """Bits of a rounded codebook."""
    integers = codebook * 2.0 ** -codebook_exponent(codebook)
    return float(row_bits(integers.T).sum())


def start(tiles: Tensor, coder: Coder) -> Start:
    """Eigenvectors of the tiles' covariance, each as long as its spacing, and a first latent."""
    axes, variance = principal_components(tiles)
    codebook = axes * spacing(variance).to(axes)
    latent = coder.start(Quadratic(codebook, tiles))
    return update_codebook(Quadratic(latent.T, tiles.T), codebook.T).T, latent


def solve_rate_aware(
    tiles: Tensor,
    rows: Rows,
    *,
    states: int = STATES,
    iterations: int = 6,
    tolerance: float = 1e-3,
) -> Result:
    """Factors of tiles that are given in units of the step.

    Parameters
    ----------
    tiles
        The tiles divided by the step, (d, n) float32, in coding order.
    rows
        Weight rows, of each slice if there are several.
    states
        States of the trellis: 4, 8, 16, 32 or 64; 1: scalar quantization.
    iterations, tolerance
        As in `tersor.factorization.solve.solve`.

    Returns
    -------
    Result
        A codebook whose elements are multiples of a power of two, and an integer latent. Rows of
        the latent that are not worth their bits are zero.
    """
    coder = Coder(rows, states)
    return solve(
        tiles,
        start(tiles, coder),
        update_latent=coder.update,
        update_codebook=update_codebook,
        penalty=coder.penalty,
        iterations=iterations,
        tolerance=tolerance,
    )
