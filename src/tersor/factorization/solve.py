"""The solver: find C and Z with ``W = C Z`` approximately, C and Z in constraint sets, in turn.

With one factor fixed, the squared error is a quadratic function of the other, column by column. An
*update* takes that quadratic and the factor as it is, and returns a better one in its set: a
gradient step followed by a projection (`gradient_step`), or the minimiser itself where the set
allows it (`least_squares`, `nearest_column`, `tersor.factorization.rate_aware`). What the known
decompositions are made of is in `tersor.factorization.methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tersor.factorization.projections import Projection

Status = Literal["converged", "iteration limit"]


@dataclass(frozen=True)
class Quadratic:
    """``f(x) = x.G x / 2 - b.x`` for each column x of a factor and b of ``target``.

    Parameters
    ----------
    gram
        G, shape (k, k), symmetric and positive semidefinite.
    target
        The columns b, shape (k, n).
    """

    gram: Tensor
    target: Tensor

    def lipschitz(self) -> float:
        """Lipschitz constant of the gradient: the largest eigenvalue of G."""
        return float(torch.linalg.matrix_norm(self.gram, 2)) if self.gram.numel() else 0.0


Update = Callable[[Quadratic, Tensor], Tensor]
Penalty = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Result:
    """The best pair of factors that `solve` met.

    Parameters
    ----------
    codebook, latent
        C (d, k) and Z (k, n).
    history
        Objective at the start and after each iteration.
    status
        Why the solver stopped.
    """

    codebook: Tensor
    latent: Tensor
    history: tuple[float, ...]
    status: Status


def gradient_step(project: Projection, steps: int = 1) -> Update:
    """Projected gradient descent: ``steps`` steps of length 1/L, each projected onto the set."""

    def update(quadratic: Quadratic, x: Tensor) -> Tensor:
        lipschitz = max(quadratic.lipschitz(), torch.finfo(x.dtype).tiny)
        for _ in range(steps):
            x = project(x - (quadratic.gram @ x - quadratic.target) / lipschitz)
        return x

    return update


def least_squares(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Minimiser over all real matrices; what the quadratic leaves open stays as it is in x."""
    gram, target = quadratic.gram, quadratic.target
    residual = target - gram @ x
    values, vectors = torch.linalg.eigh(gram)
    limit = values.abs().amax().clamp_min(torch.finfo(gram.dtype).tiny) * gram.shape[0]
    usable = values > limit * torch.finfo(gram.dtype).eps
    inverse = torch.where(usable, 1 / torch.where(usable, values, torch.ones_like(values)), 0.0)
    return x + vectors @ (inverse[:, None] * (vectors.T @ residual))


def fixed(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Leave the factor as it is."""
    return x


def distortion(tiles: Tensor, codebook: Tensor, latent: Tensor) -> float:
    """Squared error ``||W - C Z||**2``."""
    return float(((tiles - codebook @ latent) ** 2).sum(dtype=torch.float64))


def solve(
    tiles: Tensor,
    codebook: Tensor,
    latent: Tensor,
    *,
    update_latent: Update,
    update_codebook: Update = least_squares,
    penalty: Penalty = lambda codebook, latent: 0.0,
    iterations: int = 100,
    tolerance: float = 1e-5,
) -> Result:
    """Minimise ``||W - C Z||**2 + penalty(C, Z)`` by improving Z and C in turn.

    Parameters
    ----------
    tiles
        W, shape (d, n).
    codebook, latent
        Where to start: C (d, k) and Z (k, n).
    update_latent, update_codebook
        One improvement of a factor while the other is fixed. The codebook is updated transposed,
        (k, d), since its rows are the independent unknowns.
    penalty
        What is added to the squared error, a number for each pair (C, Z).
    iterations
        Iterations at most.
    tolerance
        Stop when an iteration lowers the objective by less than this share of it.

    Returns
    -------
    Result
        The best pair met, which is never worse than the start.
    """

    def objective(c: Tensor, z: Tensor) -> float:
        return distortion(tiles, c, z) + penalty(c, z)

    best = (codebook, latent)
    history = [objective(codebook, latent)]
    for _ in range(iterations):
        latent = update_latent(Quadratic(codebook.T @ codebook, codebook.T @ tiles), latent)
        transposed = update_codebook(Quadratic(latent @ latent.T, latent @ tiles.T), codebook.T)
        codebook = transposed.T
        value, least = objective(codebook, latent), min(history)
        history.append(value)
        if value < least:
            best = (codebook, latent)
        if least - value <= tolerance * abs(least):
            return Result(*best, tuple(history), "converged")
    return Result(*best, tuple(history), "iteration limit")
