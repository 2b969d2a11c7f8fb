# SPDX-License-Identifier: Apache-2.0
"""Solve for C and Z, each in its constraint set, such that ``C Z`` approximates W.

With one factor fixed, the squared error is a quadratic function of the other, column by column. An
*update* takes this quadratic and the current factor, and returns a better factor in the set: by a
gradient step and a projection (`gradient_step`), or as the exact minimiser where the set allows it
(`least_squares` and `tersor.factorization.updates`). `tersor.factorization.methods` combines
updates into the known decompositions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tersor import _native
from tersor.factorization.products import blocks, inner
from tersor.factorization.projections import Projection

Status = Literal["converged", "iteration limit"]


@dataclass(frozen=True)
class Quadratic:
    """The function ``f(x) = ||A x - w||**2 / 2`` of each column x of a factor.

    Parameters
    ----------
    basis
        A, shape (m, k): the other factor, which is fixed.
    wanted
        The columns w that ``A x`` approximates, shape (m, n).
    """

    basis: Tensor
    wanted: Tensor

    @cached_property
    def gram(self) -> Tensor:
        """Gram matrix ``G = A.T A``, shape (k, k): the gradient of f is ``G x - b``."""
        return inner(self.basis, self.basis)

    @cached_property
    def target(self) -> Tensor:
        """The columns ``b = A.T w``, shape (k, n)."""
        return inner(self.basis, self.wanted)

    def targets(self, columns: slice) -> Tensor:
        """Return some columns of `target` without computing the others."""
        return inner(self.basis, self.wanted[:, columns])

    def errors(self, x: Tensor) -> Tensor:
        """Return the squared error of each column, shape (n,)."""
        return ((self.wanted - self.basis @ x) ** 2).sum(dim=0)

    def lipschitz(self) -> float:
        """Return the Lipschitz constant L of the gradient, the largest eigenvalue of G."""
        return float(torch.linalg.eigvalsh(self.gram)[-1]) if self.gram.numel() else 0.0


Start = tuple[Tensor, Tensor]
"""A codebook (d, k) and a latent (k, n)."""

Update = Callable[[Quadratic, Tensor], Tensor]
Penalty = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Result:
    """The best pair of factors that `solve` found.

    Parameters
    ----------
    codebook, latent
        C (d, k) and Z (k, n).
    history
        Objective at the start and after each iteration.
    status
        Reason why the solver stopped.
    """

    codebook: Tensor
    latent: Tensor
    history: tuple[float, ...]
    status: Status


def gradient_step(project: Projection, steps: int = 1) -> Update:
    """Return an update by projected gradient descent.

    If the factor is in the set, the error never rises, whether the set is convex or not: each step
    minimises over the set a parabola that bounds the error from above and touches it at the start
    of the step.

    Parameters
    ----------
    project
        Projection onto the set.
    steps
        Number of gradient steps of length 1/L, each followed by the projection; default 1.
    """

    def update(quadratic: Quadratic, x: Tensor) -> Tensor:
        lipschitz = max(quadratic.lipschitz(), torch.finfo(x.dtype).tiny)
        for _ in range(steps):
            x = project(x - (quadratic.gram @ x - quadratic.target) / lipschitz)
        return x

    return update


def least_squares(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Return the minimiser over all real matrices that is nearest to x.

    Where the quadratic has no unique minimiser, x does not change along the directions in which
    the error is constant.
    """
    gram = quadratic.gram.double()
    residual = quadratic.target.double() - gram @ x.double()
    values, vectors = torch.linalg.eigh(gram)
    limit = values.abs().amax().clamp_min(torch.finfo(x.dtype).tiny) * len(gram)
    usable = values > limit * torch.finfo(x.dtype).eps
    inverse = torch.where(usable, 1 / torch.where(usable, values, 1.0), 0.0)
    step_size: Tensor = vectors @ (inverse[:, None] * (vectors.T @ residual))
    return x + step_size.to(x.dtype)


def fixed(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Return the factor unchanged: the update for a factor that is given."""
    return x


def distortion(tiles: Tensor, codebook: Tensor, latent: Tensor) -> float:
    """Return the squared error ``||W - C Z||**2``."""
    if all(x.dtype == torch.float32 and x.device.type == "cpu" for x in (tiles, codebook, latent)):
        w, c, z = (x.contiguous().numpy() for x in (tiles, codebook.T, latent))
        return _native.distortion(w, c, z, torch.get_num_threads())
    return sum(
        float((tiles[:, c] - codebook @ latent[:, c]).square_().sum(dtype=torch.float64))
        for c in blocks(*tiles.shape)
    )


def no_penalty(codebook: Tensor, latent: Tensor) -> float:
    """Return 0: the objective is the squared error alone."""
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
        Starting factors: C (d, k) and Z (k, n).
    update_latent, update_codebook
        Updates of one factor while the other is fixed. The codebook is updated transposed, (k, d),
        since its rows are the independent unknowns; by default by least squares.
    penalty
        Function of (C, Z) whose value is added to the squared error; by default 0.
    iterations
        Largest number of iterations; default 100.
    tolerance
        Stop when an iteration lowers the objective by at most this share of it; default 1e-5.

    Returns
    -------
    Result
        The best pair of all iterations, never worse than the start.
    """

    def objective(c: Tensor, z: Tensor) -> float:
        return distortion(tiles, c, z) + penalty(c, z)

    codebook, latent = best = start
    del start  # else it would keep a large latent in memory after a better one was found
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
