# SPDX-License-Identifier: Apache-2.0
"""Split the weight of a layer into the weights of two or three layers of low rank.

A weight is a matrix W, whose rows are multiplied by vectors x of inputs; for a convolution these
are patches. All forms compute features ``M x`` first, linear in x, and then ``B M x``, where the
last layer holds B. For a given M, the B of the least error ``tr(E H Eᵀ)``, with the inputs' second
moments H, is ``W H Mᵀ (M H Mᵀ)⁻¹``. What differs is the structure of M.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Ranks = tuple[int, ...]
Kernels = list[Tensor]
"""Weights of the layers that replace one, in their order, with the axes of convolutions."""

Split = Callable[[Ranks], Kernels]
"""Function that splits one weight at given ranks; what all ranks share is done before."""

_RIDGE = 1e-12
"""Part of the mean diagonal that is added to a matrix before it is inverted, in float64."""


@dataclass(frozen=True)
class Form:
    """A way to split a weight.

    Parameters
    ----------
    suits
        Whether it can split a weight of this shape in this number of groups.
    most
        Largest ranks that make sense for a shape.
    split
        Prepares a weight, (out, in, *kernel), in float64, under a metric (m, m) or None.
    composed
        Returns the weight that the split ones amount to.
    """

    suits: Callable[[Sequence[int], int], bool]
    most: Callable[[Sequence[int]], Ranks]
    split: Callable[[Tensor, Tensor | None], Split]
    composed: Callable[[Kernels], Tensor]


def truncated(matrix: Tensor, metric: Tensor | None) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return what gives the factors B (n, rank) and M (rank, m) of the least error at a rank.

    With H = L Lᵀ, the best approximation of W L is that of its singular value decomposition. The
    singular values are shared equally by both factors, so that both train at one rate.

    References
    ----------
    Chen, Yu, Dhillon, Hsieh, 2021: *DRONE: Data-aware Low-rank Compression for Large NLP Models*,
    NeurIPS 34.
    """
    lower = None if metric is None else root(metric)
    u, s, v = torch.linalg.svd(matrix if lower is None else matrix @ lower, full_matrices=False)
    half = s.sqrt()
    after, before = u * half, half[:, None] * v
    if lower is not None:
        before = torch.linalg.solve_triangular(lower, before, upper=False, left=False)
    return lambda rank: (after[:, :rank], before[:rank])


def fitted(matrix: Tensor, metric: Tensor, features: Tensor) -> Tensor:
    """Return the B of the least error of ``B M`` for a weight W, given features M (f, m)."""
    seen = features @ metric
    found: Tensor = torch.cholesky_solve(seen @ matrix.mT, root(seen @ features.mT))
    return found.transpose(0, 1)


def root(metric: Tensor) -> Tensor:
    """Return L with H = L Lᵀ, for a metric that may lack a rank, after a tiny ridge is added.

    Features of a weight of lower rank depend on each other, and those of zeros are zeros.
    """
    ridge = _RIDGE * float(metric.diagonal().mean()) or 1.0
    lower: Tensor = torch.linalg.cholesky(metric + ridge * torch.eye(len(metric)).to(metric))
    return lower


def _outputs(weight: Tensor, metric: Tensor | None) -> Split:
    at_rank, ones = truncated(weight.flatten(1), metric), (1,) * (weight.dim() - 2)

    def split(ranks: Ranks) -> Kernels:
        after, before = at_rank(*ranks)
        return [before.reshape(-1, *weight.shape[1:]), after.reshape(*after.shape, *ones)]

    return split


def _shared(rows: Tensor, weight: Tensor, metric: Tensor | None) -> Callable[[int], Kernels]:
    """Split a weight into features that are the same at all positions of its last axis, and theirs.

    Parameters
    ----------
    rows
        The weight's elements as (out, positions, features' inputs).
    weight, metric
        The weight as a matrix (out, m), m running over inputs, then positions; its metric.

    Returns
    -------
    callable
        Function of the rank: the features' weights (rank, inputs), and (out, rank, positions).
    """
    outs, positions, inputs = rows.shape
    marginal = None
    if metric is not None:
        marginal = metric.view(inputs, positions, inputs, positions)
        marginal = marginal.diagonal(dim1=1, dim2=3).mean(-1)
    at_rank = truncated(rows.reshape(-1, inputs), marginal)

    def split(rank: int) -> Kernels:
        after, before = at_rank(rank)
        if metric is None:
            return [before, after.view(outs, positions, -1).movedim(-1, 1)]
        features = torch.kron(before.contiguous(), torch.eye(positions, dtype=before.dtype))
        return [before, fitted(weight, metric, features).reshape(outs, -1, positions)]

    return split


def _inputs(weight: Tensor, metric: Tensor | None) -> Split:
    outs, ins, *kernel = weight.shape
    at_rank = _shared(weight.flatten(2).movedim(1, -1), weight.flatten(1), metric)

    def split(ranks: Ranks) -> Kernels:
        before, after = at_rank(*ranks)
        return [before.view(-1, ins, *(1,) * len(kernel)), after.reshape(outs, -1, *kernel)]

    return split


def _spatial(weight: Tensor, metric: Tensor | None) -> Split:
    outs, ins, high, wide = weight.shape
    rows = weight.permute(0, 3, 1, 2).reshape(outs, wide, ins * high)
    at_rank = _shared(rows, weight.flatten(1), metric)

    def split(ranks: Ranks) -> Kernels:
        before, after = at_rank(*ranks)
        return [before.reshape(-1, ins, high, 1), after.reshape(outs, -1, 1, wide)]

    return split


def _tucker(weight: Tensor, metric: Tensor | None) -> Split:
    of_inputs = _inputs(weight, metric)

    @lru_cache(maxsize=1)
    def inner(rank: int) -> tuple[Tensor, Split]:
        first, core = of_inputs((rank,))
        if metric is None:
            return first, _outputs(core, None)
        eye = torch.eye(core[0, 0].numel(), dtype=first.dtype)
        features = torch.kron(first.flatten(1).contiguous(), eye)
        return first, _outputs(core, features @ metric @ features.mT)

    def split(ranks: Ranks) -> Kernels:
        first, of_core = inner(ranks[0])
        return [first, *of_core(ranks[1:])]

    return split


def _depthwise(weight: Tensor, metric: Tensor | None) -> Split:
    """Split each kernel into a column times a row; without the metric, which all channels share."""
    u, s, v = torch.linalg.svd(weight[:, 0])
    half = s[:, 0].sqrt()[:, None]
    kernels = [(u[:, :, 0] * half)[:, None, :, None], (v[:, 0] * half)[:, None, None]]
    return lambda ranks: kernels


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """Return the weight of two layers in a row, of which one is 1x1."""
    return torch.einsum("orp,rim->oipm", second.flatten(2), first.flatten(2)).flatten(2)


def _compose_pointwise(kernels: Kernels) -> Tensor:
    shape = max((kernel.shape[2:] for kernel in kernels), key=lambda size: size.numel())
    weight = kernels[0]
    for kernel in kernels[1:]:
        weight = _joined(weight, kernel)
    return weight.reshape(*weight.shape[:2], *shape)


def _compose_spatial(kernels: Kernels) -> Tensor:
    return torch.einsum("rih,orw->oihw", kernels[0][..., 0], kernels[1][..., 0, :])


def _is_kernel(shape: Sequence[int], groups: int) -> bool:
    return groups == 1 and any(size > 1 for size in shape[2:])


FORMS: Mapping[str, Form] = {
    "outputs": Form(
        lambda shape, groups: groups == 1,
        lambda shape: (min(shape[0], torch.Size(shape[1:]).numel()),),
        _outputs,
        _compose_pointwise,
    ),
    "inputs": Form(
        _is_kernel,
        lambda shape: (min(shape[1], shape[0] * torch.Size(shape[2:]).numel()),),
        _inputs,
        _compose_pointwise,
    ),
    "spatial": Form(
        lambda shape, groups: groups == 1 and len(shape) == 4 and min(shape[2:]) > 1,
        lambda shape: (min(shape[1] * shape[2], shape[0] * shape[3]),),
        _spatial,
        _compose_spatial,
    ),
    "tucker": Form(_is_kernel, lambda shape: (shape[1], shape[0]), _tucker, _compose_pointwise),
    "depthwise": Form(
        lambda shape, groups: (
            groups == shape[0] > 1 == shape[1] and len(shape) == 4 and min(shape[2:]) > 1
        ),
        lambda shape: (1,),
        _depthwise,
        lambda kernels: kernels[0] * kernels[1],
    ),
}
"""By name: ``outputs`` has a layer of few outputs with the whole kernel, then 1x1 (a linear layer
becomes two); ``inputs`` 1x1 to few channels, then the whole kernel; ``spatial`` kx1, then 1xk;
``tucker`` 1x1, the kernel between few channels, 1x1; ``depthwise`` kx1 and 1xk for each channel.
"""
