"""The solver: find C and Z with ``W = C Z`` approximately, C and Z in constraint sets, in turn.

With one factor fixed, the squared error is a quadratic function of the other, column by column. An
*update* takes that quadratic and the factor as it is, and returns a better one in its set: a
gradient step followed by a projection (`gradient_step`), or the minimiser itself where the set
allows it (`least_squares` and `tersor.factorization.updates`). What the known decompositions are
made of is in `tersor.factorization.methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tersor.factorization.products import blocks, inner
from tersor.factorization.projections import Projection

Status = Literal["converged", "iteration limit"]


@dataclass(frozen=True)
class Quadratic:
    """``f(x) = ||A x - w||**2 / 2`` for each column x of a factor and w of what it approximates.

    Parameters
    ----------
    basis
        A, shape (m, k): the other factor.
    wanted
        The columns w, shape (m, n).
    """

    basis: Tensor
    wanted: Tensor

    @cached_property
    def gram(self) -> Tensor:
        """``G = A.T A``, shape (k, k): the gradient is ``G x - b``."""
        return inner(self.basis, self.basis)

    @cached_property
    def target(self) -> Tensor:
        """The columns ``b = A.T w``, shape (k, n)."""
        return inner(self.basis, self.wanted)

    def targets(self, columns: slice) -> Tensor:
        """Some of the columns of `target`, which is not computed as a whole."""
        return inner(self.basis, self.wanted[:, columns])

    def errors(self, x: Tensor) -> Tensor:
        """Squared error of each column, shape (n,)."""
        return ((self.wanted - self.basis @ x) ** 2).sum(dim=0)

    def lipschitz(self) -> float:
        """Lipschitz constant of the gradient: the largest eigenvalue of G."""
        return float(torch.linalg.eigvalsh(self.gram)[-1]) if self.gram.numel() else 0.0


Start = tuple[Tensor, Tensor]
"""A codebook (d, k) and a latent (k, n)."""

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
    """Projected gradient descent: ``steps`` steps of length 1/L, each projected onto the set.

    From a member of the set the error never rises, convex or not: each step minimises, over the
    set, a parabola that bounds the error from above and touches it where the step starts.
    """

    def update(quadratic: Quadratic, x: Tensor) -> Tensor:
        lipschitz = max(quadratic.lipschitz(), torch.finfo(x.dtype).tiny)
        for _ in range(steps):
            x = project(x - (quadratic.gram @ x - quadratic.target) / lipschitz)
        return x

    return update


def least_squares(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Minimiser over all real matrices; what the quadratic leaves open stays as it is in x."""
    gram = quadratic.gram.double()
    residual = quadratic.target.double() - gram @ x.double()
    values, vectors = torch.linalg.eigh(gram)
    limit = values.abs().amax().clamp_min(torch.finfo(x.dtype).tiny) * len(gram)
    usable = values > limit * torch.finfo(x.dtype).eps
    inverse = torch.where(usable, 1 / torch.where(usable, values, 1.0), 0.0)
    step: Tensor = vectors @ (inverse[:, None] * (vectors.T @ residual))
    return x + step.to(x.dtype)


def fixed(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Leave the factor as it is."""
    return x


def distortion(tiles: Tensor, codebook: Tensor, latent: Tensor) -> float:
    """Squared error ``||W - C Z||**2``."""
    return sum(
        float((tiles[:, c] - codebook @ latent[:, c]).square_().sum(dtype=torch.float64))
        for c in blocks(*tiles.shape)
    )


def no_penalty(codebook: Tensor, latent: Tensor) -> float:
    """Nothing but the squared error counts."""
    return 0.0


def solve(
    tiles: Tensor,
    start: Start,
    *,
    update_latent: Update,
    update_codebook: Update = least_squares,
    penalty: Penalty = no_penalty,
    iterations: int = 100,
    tolerance: float = 1e-5,
) -> Result:
    """Minimise ``||W - C Z||**2 + penalty(C, Z)`` by improving Z and C in turn.

    Parameters
    ----------
    tiles
        W, shape (d, n).
    start
        Where to start: C (d, k) and Z (k, n).
    update_latent, update_codebook
        One improvement of a factor while the other is fixed. The codebook is updated transposed,
        (k, d), since its rows are the independent unknowns.
    penalty
        What is added to the squared error, a number for each pair (C, Z).
    iterations
        Iterations at most.
    tolerance
        Stop when an iteration lowers the objective by no more than this share of it.

    Returns
    -------
    Result
        The best pair met, which is never worse than the start.
    """

    def objective(c: Tensor, z: Tensor) -> float:
        return distortion(tiles, c, z) + penalty(c, z)

    codebook, latent = best = start
    del start  # it may be the last to hold a large latent that is no longer the best
    history = [objective(codebook, latent)]
    for _ in range(iterations):
        latent = update_latent(Quadratic(codebook, tiles), latent)
        codebook = update_codebook(Quadratic(latent.T, tiles.T), codebook.T).T
        value, least = objective(codebook, latent), min(history)
        history.append(value)
        if value < least:
            best = (codebook, latent)
        if least - value <= tolerance * abs(least):
            return Result(*best, tuple(history), "converged")
    return Result(*best, tuple(history), "iteration limit")
