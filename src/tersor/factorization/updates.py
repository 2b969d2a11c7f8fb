"""Updates for particular constraint sets: the minimiser, or a better search than a gradient step.

None of them raises the error, except that `use_every_row` may until the codebook has been refitted.
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
"""Columns whose supports are searched together."""


def project_target(project: Projection) -> Update:
    """Minimiser over any set for an orthonormal codebook: the projection of ``C.T W``."""
    return lambda quadratic, x: project(quadratic.target)


def nearest_column(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Minimiser over one-hot columns: the one in the row of the nearest codebook column."""
    nearest = (quadratic.gram.diagonal()[:, None] / 2 - quadratic.target).argmin(dim=0)
    return torch.zeros_like(x).scatter(0, nearest[None], 1.0)


def exchange_ones(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Each of a column's ones in turn moved to its best free row: coordinate descent.

    Columns keep their number of ones, which is the same for all.
    """
    count = int(x[:, 0].sum()) if x.numel() else 0
    places = x.topk(count, dim=0).indices
    # The change of f when a one is added to row j: half the norm of its column of A, and its slope.
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
    """Minimiser over all real matrices for one-hot columns; rows that nothing uses stay."""
    counts = quadratic.basis.sum(dim=0)[:, None]
    return torch.where(counts > 0, quadratic.target / counts.clamp_min(1), x)


def orthonormal_rows(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Minimiser over matrices of orthonormal rows (Procrustes): the polar factor of the target."""
    left, _, right = torch.linalg.svd(quadratic.target.double(), full_matrices=False)
    polar: Tensor = left @ right
    return polar.to(x.dtype)


def use_every_row(quadratic: Quadratic, x: Tensor) -> Tensor:
    """Let the columns with the largest errors use the rows that no column uses.

    Each gets a one there in place of its weakest nonzero. The least-squares fit of the codebook
    that must follow makes these columns exact, so that the error falls. For k-means this is what
    scikit-learn does with empty clusters.
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


def shrink(price: float, steps: int) -> Update:
    """Proximal gradient descent on ``f(x) + price * sum(abs(x))`` (ISTA; Daubechies et al., 2004).

    The set is all real matrices; the price makes most entries zero.
    """

    def update(quadratic: Quadratic, x: Tensor) -> Tensor:
        lipschitz = max(quadratic.lipschitz(), torch.finfo(x.dtype).tiny)
        for _ in range(steps):
            x = x - (quadratic.gram @ x - quadratic.target) / lipschitz
            x = x.sign() * (x.abs() - price / lipschitz).clamp_min(0)
        return x

    return update


def _triangles(quadratic: Quadratic, support: Tensor) -> Tensor:
    """Cholesky factors of the Gram matrices of each column's rows (s, n): (n, s, s)."""
    rows, epsilon = support.T, torch.finfo(quadratic.gram.dtype).eps
    gram = quadratic.gram.double()[rows[:, :, None], rows[:, None, :]]
    # A few units in the last place, for bases with equal columns or zero ones.
    gram.diagonal(dim1=1, dim2=2).mul_(1 + 16 * epsilon).add_(torch.finfo(torch.float32).tiny)
    triangles: Tensor = torch.linalg.cholesky(gram)
    return triangles


def refit(quadratic: Quadratic, support: Tensor) -> Tensor:
    """Least squares on the given rows (s, n) of each column: a (k, n) matrix."""
    target = quadratic.target.gather(0, support).T.double()[:, :, None]
    values = torch.cholesky_solve(target, _triangles(quadratic, support))[:, :, 0].T
    return torch.zeros_like(quadratic.target).scatter(0, support, values.to(quadratic.target))


def _extend(quadratic: Quadratic, support: Tensor) -> Tensor:
    """Support (s, n) with the row added that lowers the refitted error most."""
    slope = quadratic.target - quadratic.gram @ refit(quadratic, support)
    gram = quadratic.gram.double()
    known = torch.linalg.solve_triangular(
        _triangles(quadratic, support), gram[support.T], upper=False
    )
    norms = gram.diagonal()[:, None].clamp_min(torch.finfo(torch.float32).tiny)
    # What is left of each column of the basis when the rows in use have taken their part.
    left = (norms - known.square().sum(dim=1).T).maximum(1e-9 * norms)
    best = (slope.double() ** 2 / left).scatter(0, support, -1.0).argmax(dim=0, keepdim=True)
    return torch.cat([support, best])


def _search(quadratic: Quadratic, support: Tensor) -> Tensor:
    """The better of a support and a greedy one, then each of its rows in turn exchanged."""

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
    """Search for the best ``count`` nonzeros of each column, of any value.

    Candidates are the rows in use, those of orthogonal least squares (Chen, Billings and Luo,
    1989), and what exchanging each row in turn for the best other gives; the best is kept.
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
    """Search for the best ``count`` integers of each column, of magnitude up to ``largest``.

    Each nonzero in turn is moved to its best free row and value, which never raises the error: from
    the column as it is, and from a greedy one (matching pursuit); the better is kept.
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


def exchange_signs(rounds: int, generator: Generator) -> Update:
    """Signs of eight rows at a time, the best of all 256, so that the error never rises.

    In each round the rows are dealt into eights anew, which matters: the same ones all the time
    cost 0.6 dB at 2 bits per weight. For float32 on the CPU.
    """

    def update(quadratic: Quadratic, x: Tensor) -> Tensor:
        return best_signs(quadratic.gram, quadratic.target, x, rounds, generator)

    return update


def best_signs(
    gram: Tensor, target: Tensor, x: Tensor, rounds: int, generator: Generator
) -> Tensor:
    """Signs x (k, n) that lower ``x.T G x - 2 target.T x``: see `exchange_signs`."""
    deals = [torch.randperm(len(x), generator=generator) for _ in range(rounds)]
    orders, x = torch.stack(deals).to(torch.int32), x.clone(memory_format=torch.contiguous_format)
    _native.search_signs(
        target.contiguous().numpy(),
        gram.contiguous().numpy(),
        x.numpy(),
        orders.numpy(),
        torch.get_num_threads(),
    )
    return x


@dataclass(frozen=True)
class _Integers:
    """Columns of integers that lower ``x.T G x - 2 b.T x``."""

    gram: Tensor
    target: Tensor
    largest: int

    def gain(self, x: Tensor) -> Tensor:
        """How much the columns lower the squared error below that of zero."""
        return (x * (2 * self.target - self.gram @ x)).sum(dim=0)

    def greedy(self, count: int) -> Tensor:
        """One nonzero after the other, each the best."""
        x = torch.zeros_like(self.target)
        for _ in range(count):
            self._add(x)
        return x

    def exchange(self, x: Tensor, count: int) -> Tensor:
        """Each of the ``count`` largest entries in turn taken out, and the best put in."""
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
