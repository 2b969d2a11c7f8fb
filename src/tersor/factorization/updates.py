# SPDX-License-Identifier: Apache-2.0
"""Update a factor in a particular set: by the minimiser, or a better search than a gradient step.

No update raises the error, except `use_every_row`: it may until the codebook has been refitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tersor import _native
from tersor.factorization.products import blocks
from tersor.factorization.projections import Projection
from tersor.factorization.solve import Quadratic, Update

_COLUMNS_AT_ONCE = 4096
"""Number of columns whose nonzeros are searched together."""


def project_target(project: Projection) -> Update:
    """Return the update for an orthonormal codebook: the projection of ``C.T W`` onto the set.

    It is the minimiser, for any set.
    """
    return lambda quadratic, x: project(quadratic.target)


def nearest_column(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Return the minimiser over one-hot columns, which is a one for the nearest codebook column."""
    nearest = (quadratic.gram.diagonal()[:, None] / 2 - quadratic.target).argmin(dim=0)
    return torch.zeros_like(x).scatter(0, nearest[None], 1.0)


def exchange_ones(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Return columns of ones improved by coordinate descent.

    Each one of a column is moved in turn to the best row that has none. All columns have the same
    number of ones, which does not change.
    """
    count = int(x[:, 0].sum()) if x.numel() else 0
    places = x.topk(count, dim=0).indices
    # The change of f when a one is added to row j: the slope and half the squared norm of A's
    # column j.
    change = quadratic.gram @ x - quadratic.target + quadratic.gram.diagonal()[:, None] / 2
    x = x.clone()
    for place in places:
        change -= quadratic.gram[:, place]
        x.scatter_(0, place[None], 0.0)
        place = torch.where(x > 0, torch.inf, change).argmin(dim=0)
        change += quadratic.gram[:, place]
        x.scatter_(0, place[None], 1.0)
    return x


def means(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Return the least-squares codebook of a one-hot latent: the mean of the tiles of each column.

    Rows of x that no tile uses do not change.
    """
    counts = quadratic.basis.sum(dim=0)[:, None]
    return torch.where(counts > 0, quadratic.target / counts.clamp_min(1), x)


def orthonormal_rows(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Return the minimiser over matrices of orthonormal rows: the polar factor of the target.

    This is the Procrustes problem.
    """
    left, _, right = torch.linalg.svd(quadratic.target.double(), full_matrices=False)
    polar: Tensor = left @ right
    return polar.to(x.dtype)


def use_every_row(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Return a latent in which the columns with the largest errors use the rows that none used.

    Each of these columns gets a one in such a row in place of its smallest nonzero. A least-squares
    fit of the codebook must follow: it makes these columns exact, so that the error falls.
    scikit-learn treats the empty clusters of k-means in the same way.
    """
    unused = (x == 0).all(dim=1).nonzero()[: x.shape[1], 0]
    if not len(unused):
        return x
    worst = quadratic.errors(x).topk(len(unused)).indices
    magnitudes = x[:, worst].abs()
    weakest = torch.where(magnitudes > 0, magnitudes, torch.inf).argmin(dim=0)
    x = x.clone()
    x[weakest, worst] = 0.0
    x[unused, worst] = 1.0
    return x


def shrink(penalty: float, steps: int) -> Update:
    """Return an update by proximal gradient descent on ``f(x) + penalty * sum(abs(x))``.

    The set is all real matrices; the penalty makes most entries zero. The algorithm is ISTA
    (Daubechies et al., 2004).

    Parameters
    ----------
    penalty
        Price of a unit of magnitude.
    steps
        Number of gradient steps of length 1/L.
    """

    def update(quadratic: Quadratic, x: Tensor) -> Tensor:
        lipschitz = max(quadratic.lipschitz(), torch.finfo(x.dtype).tiny)
        for _ in range(steps):
            x = x - (quadratic.gram @ x - quadratic.target) / lipschitz
            x = x.sign() * (x.abs() - penalty / lipschitz).clamp_min(0)
        return x

    return update


def _triangles(quadratic: Quadratic, support: Tensor) -> Tensor:
    """Return the Cholesky factors (n, s, s) of the Gram matrices of each column's rows (s, n)."""
    rows, epsilon = support.T, torch.finfo(quadratic.gram.dtype).eps
    gram = quadratic.gram.double()[rows[:, :, None], rows[:, None, :]]
    # Add a few units in the last place, since columns of the basis may be equal or zero.
    gram.diagonal(dim1=1, dim2=2).mul_(1 + 16 * epsilon).add_(torch.finfo(torch.float32).tiny)
    triangles: Tensor = torch.linalg.cholesky(gram)
    return triangles


def refit(quadratic: Quadratic, support: Tensor) -> Tensor:
    """Return the least-squares latent (k, n) whose nonzeros are in the given rows.

    Parameters
    ----------
    quadratic
        Error to minimise.
    support
        Rows of the nonzeros of each column, shape (s, n).
    """
    target = quadratic.target.gather(0, support).T.double()[:, :, None]
    values = torch.cholesky_solve(target, _triangles(quadratic, support))[:, :, 0].T
    return torch.zeros_like(quadratic.target).scatter(0, support, values.to(quadratic.target))


def _extend(quadratic: Quadratic, support: Tensor) -> Tensor:
    """Return a support (s, n) and the row that lowers the refitted error most: (s + 1, n)."""
    slope = quadratic.target - quadratic.gram @ refit(quadratic, support)
    gram = quadratic.gram.double()
    known = torch.linalg.solve_triangular(
        _triangles(quadratic, support), gram[support.T], upper=False
    )
    norms = gram.diagonal()[:, None].clamp_min(torch.finfo(torch.float32).tiny)
    # Squared norm of the part of each column of A that is orthogonal to the columns in use.
    left = (norms - known.square().sum(dim=1).T).maximum(1e-9 * norms)
    best = (slope.double() ** 2 / left).scatter(0, support, -1.0).argmax(dim=0, keepdim=True)
    return torch.cat([support, best])


def _search(quadratic: Quadratic, support: Tensor) -> Tensor:
    """Return the better of a support and a greedy one, after each of its rows was exchanged."""

    def better(support: Tensor, candidate: Tensor) -> Tensor:
        errors = [quadratic.errors(refit(quadratic, s)) for s in (support, candidate)]
        return torch.where(errors[1] < errors[0], candidate, support)

    greedy = support[:0]
    for _ in support:
        greedy = _extend(quadratic, greedy)
    support = better(support, greedy)
    for _ in range(len(support)):
        support = better(support.roll(-1, dims=0), _extend(quadratic, support[1:]))
    return support


def pursue(count: int) -> Update:
    """Return an update that searches for the best nonzeros of each column, of any value.

    Candidates for their rows are the current rows, the rows of orthogonal least squares (Chen,
    Billings and Luo, 1989), and the results of exchanging each row in turn for the best other one.
    The best candidate is kept.

    Parameters
    ----------
    count
        Number of nonzeros of each column.
    """

    def update(quadratic: Quadratic, x: Tensor) -> Tensor:
        support = x.abs().topk(count, dim=0).indices
        blocks = zip(
            torch.split(quadratic.wanted, _COLUMNS_AT_ONCE, dim=1),
            torch.split(support, _COLUMNS_AT_ONCE, dim=1),
            strict=True,
        )
        parts = [(Quadratic(quadratic.basis, wanted), rows) for wanted, rows in blocks]
        return torch.cat([refit(part, _search(part, rows)) for part, rows in parts], dim=1)

    return update


def pursue_integers(count: int, largest: int) -> Update:
    """Return an update that searches for the best nonzero integers of each column.

    Each nonzero in turn is moved to the best free row and gets the best value, which never raises
    the error. The search starts from the current column and from a greedy one (matching pursuit),
    and keeps the better result.

    Parameters
    ----------
    count
        Number of nonzeros of each column.
    largest
        Largest magnitude.
    """

    def update(quadratic: Quadratic, x: Tensor) -> Tensor:
        x = x.clone()
        for columns in blocks(*x.shape):
            part = _Integers(quadratic.gram, quadratic.targets(columns), largest)
            known = part.exchange(x[:, columns], count)
            fresh = part.exchange(part.greedy(count), count)
            x[:, columns] = torch.where(part.gain(fresh) > part.gain(known), fresh, known)
        return x

    return update


def exchange_binary(rounds: int, generator: Generator) -> Update:
    """Return an update that searches for binary latents, of eight rows at a time.

    For each group of eight rows it takes the best of all 256 combinations, so that the error never
    rises. In each round the rows are grouped at random again: with the same groups in all rounds
    the result is worse by 0.6 dB at 2 bits per weight. It needs float32 tensors on the CPU.

    Parameters
    ----------
    rounds
        Number of times that all rows are searched.
    generator
        Generator for the random groups.
    """

    def update(quadratic: Quadratic, x: Tensor) -> Tensor:
        return best_binary(quadratic.gram, quadratic.target, x, rounds, generator)

    return update


def best_binary(
    gram: Tensor, target: Tensor, x: Tensor, rounds: int, generator: Generator
) -> Tensor:
    """Return a binary latent (k, n) of lower ``x.T G x - 2 target.T x``: see `exchange_binary`."""
    deals = [torch.randperm(len(x), generator=generator) for _ in range(rounds)]
    orders, x = torch.stack(deals).to(torch.int32), x.clone(memory_format=torch.contiguous_format)
    _native.search_binary(
        target.contiguous().numpy(),
        gram.contiguous().numpy(),
        x.numpy(),
        orders.numpy(),
        torch.get_num_threads(),
    )
    return x


@dataclass(frozen=True)
class _Integers:
    """A search for columns x of integers that lower ``x.T G x - 2 b.T x``."""

    gram: Tensor
    target: Tensor
    largest: int

    def gain(self, x: Tensor) -> Tensor:
        """Return how much lower the squared error of each column is than that of zeros."""
        return (x * (2 * self.target - self.gram @ x)).sum(dim=0)

    def greedy(self, count: int) -> Tensor:
        """Return columns of ``count`` nonzeros, chosen one after the other, each the best."""
        x = torch.zeros_like(self.target)
        for _ in range(count):
            self._add(x)
        return x

    def exchange(self, x: Tensor, count: int) -> Tensor:
        """Return columns after each of the ``count`` largest entries was replaced by the best."""
        x = x.clone()
        for place in x.abs().topk(count, dim=0).indices:
            x.scatter_(0, place[None], 0.0)
            self._add(x)
        return x

    def _add(self, x: Tensor) -> None:
        norms = self.gram.diagonal()[:, None].clamp_min(torch.finfo(x.dtype).tiny)
        left = self.target - self.gram @ x
        values = (left / norms).round_().clamp_(-self.largest, self.largest)
        gains = (values * (2 * left - values * norms)).masked_fill_(x != 0, -1.0)
        best = gains.argmax(dim=0, keepdim=True)
        x.scatter_(0, best, values.gather(0, best))
