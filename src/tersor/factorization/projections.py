"""Constraint sets of a factor: pure functions that map a matrix to the nearest member of a set.

Each function here makes a projection: ``project(y)`` minimises ``||x - y||`` over the x of the set
that its docstring states. Any callable of that kind can be given to `tersor.factorization.solve`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Projection = Callable[[Tensor], Tensor]


def free() -> Projection:
    """All real matrices: nothing is changed."""
    return lambda y: y


def keep_largest(count: int) -> Projection:
    """Matrices with at most ``count`` nonzeros in each column (hard thresholding)."""

    def project(y: Tensor) -> Tensor:
        kept = y.abs().topk(min(count, y.shape[0]), dim=0).indices
        return torch.zeros_like(y).scatter(0, kept, y.gather(0, kept))

    return project


def ones(count: int) -> Projection:
    """Matrices with exactly ``count`` ones in each column and zeros elsewhere.

    Among such columns x, ``||x - y||`` differs only by ``-2 x.y``: the largest entries become one.
    """

    def project(y: Tensor) -> Tensor:
        return torch.zeros_like(y).scatter(0, y.topk(count, dim=0).indices, 1.0)

    return project


def integers(largest: int | None = None) -> Projection:
    """Integer matrices, of magnitude up to ``largest`` if given; halves become even."""

    def project(y: Tensor) -> Tensor:
        return y.round() if largest is None else y.round().clamp(-largest, largest)

    return project


def few_integers(count: int, largest: int) -> Projection:
    """Integer matrices of magnitude up to ``largest``, at most ``count`` nonzeros in each column.

    Rounding an entry instead of dropping it lowers its squared error by ``y**2 - (y - x)**2``; the
    entries that gain most are kept.
    """
    nearest = integers(largest)

    def project(y: Tensor) -> Tensor:
        x = nearest(y)
        kept = (x * (2 * y - x)).topk(min(count, y.shape[0]), dim=0).indices
        return torch.zeros_like(y).scatter(0, kept, x.gather(0, kept))

    return project


def signs() -> Projection:
    """Matrices of -1 and 1; zero becomes 1."""
    return lambda y: torch.where(y < 0, -torch.ones_like(y), torch.ones_like(y))


def grid(step: float, largest: int) -> Projection:
    """Multiples of ``step`` up to ``largest`` times it, in magnitude."""
    project = integers(largest)
    return lambda y: project(y / step) * step


def short_rows() -> Projection:
    """Matrices whose rows have at most unit norm: longer ones are scaled down."""
    return lambda y: y / y.norm(dim=1, keepdim=True).clamp_min(1)
