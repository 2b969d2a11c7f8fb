# SPDX-License-Identifier: Apache-2.0
"""Find the rank of a noisy matrix by variational Bayesian matrix factorisation, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import InputError

_TAU = 2.5129
"""Slope of the threshold: the positive zero of the free energy's derivative is about this times the
square root of the ratio of the sides (corollary 2 of the paper)."""

_TRIED = 512
"""Number of noise variances, equally spaced in logarithm, of which the best is refined."""

_REFINED = 60
"""Steps of the golden section; each makes the interval 0.618 times as wide."""


@dataclass(frozen=True)
class Estimate:
    """Rank of a matrix, and what is left of its singular values without the noise.

    Parameters
    ----------
    rank
        Number of singular values above the threshold, which may be 0.
    values
        Posterior means of these singular values, float64, (rank,).
    noise
        Variance of the noise of an element.

    Examples
    --------
    >>> planted = torch.randn(80, 5) @ torch.randn(5, 120) + torch.randn(80, 120)
    >>> found = tersor.lowrank.vbmf(planted)
    >>> found.rank, found.values.shape
    (5, torch.Size([5]))
    """

    rank: int
    values: Tensor
    noise: float


def vbmf(matrix: Tensor) -> Estimate:
    """Return the rank of a matrix without its noise, by empirical variational Bayes.

    The global minimum of the free energy is found in closed form from the singular values, for a
    variance of the noise that minimises it too. No rank and no threshold has to be given.

    Parameters
    ----------
    matrix
        Matrix of finite elements, (l, m), on any device.

    Returns
    -------
    Estimate
        Rank, singular values without noise, and the noise's variance.

    Raises
    ------
    InputError
        If it is no matrix, or has elements that are NaN or infinite.

    References
    ----------
    Nakajima, Sugiyama, Babacan, Tomioka, 2013: *Global Analytic Solution of Fully-observed
    Variational Bayesian Matrix Factorization*, Journal of Machine Learning Research 14.

    Examples
    --------
    >>> tersor.lowrank.vbmf(torch.randn(100, 200)).rank
    0
    """
    if matrix.dim() != 2 or not matrix.is_floating_point() or not matrix.numel():
        raise InputError(
            f"a matrix of floating-point numbers is needed, got {matrix.dtype} of shape "
            f"{tuple(matrix.shape)}"
        )
    if not bool(matrix.isfinite().all()):
        raise InputError("the matrix has elements that are NaN or infinite; look for their cause")
    values = torch.linalg.svdvals(matrix.detach().to(torch.float64)).cpu()
    if not float(values[0]):
        return Estimate(0, values[:0], 0.0)
    short, long = sorted(matrix.shape)
    noise = _noise(values, short, long)
    ratio = short / long
    tau = _TAU * math.sqrt(ratio)
    threshold = math.sqrt(long * noise * (1 + tau) * (1 + ratio / tau))
    above = values[values > threshold]
    share = 1 - (short + long) * noise / above**2
    shrunk = above / 2 * (share + (share**2 - 4 * short * long * noise**2 / above**4).sqrt())
    return Estimate(len(above), shrunk, noise)


def _noise(values: Tensor, short: int, long: int) -> float:
    """Return the variance of the noise with the least free energy.

    The energy has several minima, so that a grid comes before the golden section.
    """
    ratio = short / long
    tau = _TAU * math.sqrt(ratio)
    edge = (1 + tau) * (1 + ratio / tau)
    most = float((values**2).sum()) / (short * long)
    tail = min(max(math.ceil(short / (1 + ratio)) - 1, 1), short) - 1
    rest = values[tail:] ** 2
    least = max(float(rest[0]) / (long * edge), float(rest.mean()) / long, most * 1e-12)
    if least >= most:
        return most
    grid = torch.linspace(math.log(least), math.log(most), _TRIED, dtype=torch.float64)
    at = int(_energies(values, grid.exp(), ratio, edge, long).argmin())
    low, high = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, _TRIED - 1)])
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(_REFINED):
        inner = torch.tensor([high - golden * (high - low), low + golden * (high - low)]).double()
        first, second = _energies(values, inner.exp(), ratio, edge, long).tolist()
        low, high = (low, float(inner[1])) if first < second else (float(inner[0]), high)
    return math.exp((low + high) / 2)


def _energies(values: Tensor, noises: Tensor, ratio: float, edge: float, long: int) -> Tensor:
    """Return the free energy, but for constants, at each variance of the noise (theorem 3)."""
    x = values[None] ** 2 / (long * noises[:, None])
    above = x > edge
    safe = x.clamp_min(edge)
    half = safe - (1 + ratio)
    tau = (half + (half**2 - 4 * ratio).clamp_min(0).sqrt()) / 2
    kept = safe - tau + ((tau + 1) / safe).log() + ratio * (tau / ratio + 1).log()
    tiny = torch.finfo(torch.float64).tiny
    return torch.where(above, kept, x - x.clamp_min(tiny).log()).sum(1)
