# SPDX-License-Identifier: Apache-2.0
"""Project a factor onto constraint sets: map a matrix to the nearest member of a set.

Each function here returns a projection, a pure function: ``project(y)`` minimises ``||x - y||``
over all x of the set that the docstring names. `tersor.factorization.solve` takes any function of
this kind.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Projection = Callable[[Tensor], Tensor]


def free() -> Projection:
    """Return the projection onto all real matrices, which changes nothing."""
    return lambda y: y


def keep_largest(count: int) -> Projection:
    """Return the projection onto matrices with at most ``count`` nonzeros in each column.

    It is known as hard thresholding.
    """

    def project(y: Tensor) -> Tensor:
        kept = y.abs().topk(min(count, y.shape[0]), dim=0).indices
        return torch.zeros_like(y).scatter(0, kept, y.gather(0, kept))

    return project


def ones(count: int) -> Projection:
    """Return the projection onto matrices of ``count`` ones in each column and zeros elsewhere.

    Among such columns x, ``||x - y||**2`` differs only by the term ``-2 x.y``, so that the largest
    entries become one.
    """

    def project(y: Tensor) -> Tensor:
        return torch.zeros_like(y).scatter(0, y.topk(count, dim=0).indices, 1.0)

    return project


def integers(largest: int | None = None) -> Projection:
    """Return the projection onto integer matrices.

    Parameters
    ----------
    largest
        Largest magnitude; None (default): any. Halves are rounded to even.
    """

    def project(y: Tensor) -> Tensor:
        return y.round() if largest is None else y.round().clamp(-largest, largest)

    return project


def few_integers(count: int, largest: int) -> Projection:
    """Return the projection onto integer matrices with few nonzeros in each column.

    An entry y that is rounded to x instead of 0 has a squared error that is lower by
    ``y**2 - (y - x)**2``; the entries with the largest gain are kept.

    Parameters
    ----------
    count
        Largest number of nonzeros in each column.
    largest
        Largest magnitude.
    """
    nearest = integers(largest)

    def project(y: Tensor) -> Tensor:
        x = nearest(y)
        kept = (x * (2 * y - x)).topk(min(count, y.shape[0]), dim=0).indices
        return torch.zeros_like(y).scatter(0, kept, x.gather(0, kept))

    return project


def binary() -> Projection:
    """Return the projection onto matrices of -1 and 1; zero becomes 1."""
    return lambda y: torch.where(y < 0, -torch.ones_like(y), torch.ones_like(y))


def grid(step_size: float, largest: int) -> Projection:
    """Return the projection onto multiples of ``step_size``, up to ``largest`` times it."""
    project = integers(largest)
    return lambda y: project(y / step_size) * step_size


def short_rows() -> Projection:
    """Return the projection onto matrices whose rows have at most unit norm.

    Longer rows are scaled to unit norm.
    """
    return lambda y: y / y.norm(dim=1, keepdim=True).clamp_min(1)
