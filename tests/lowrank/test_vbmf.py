# SPDX-License-Identifier: Apache-2.0
"""Ranks by variational Bayes: planted ranks, and the free energy that it minimises."""

import math

import numpy as np
import pytest
import torch

import tersor
from tersor.lowrank import vbmf


def planted(rows, columns, rank, noise, seed=0):
    draw = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, rank, generator=draw) for n in (rows, columns))
    return left @ right.T + noise * torch.randn(rows, columns, generator=draw)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "rows, columns, rank, noise",
    [
        (80, 120, 5, 1.0),
        (120, 80, 5, 1.0),
        (64, 576, 20, 0.3),
        (100, 100, 0, 1.0),
        (16, 144, 3, 0.5),
    ],
)
def test_planted_ranks_and_noise_are_found(rows, columns, rank, noise, seed):
    found = vbmf(planted(rows, columns, rank, noise, seed))
    assert found.rank == rank == len(found.values)
    assert found.noise == pytest.approx(noise**2, rel=0.15)


def iterated(value, rows, columns, noise, steps=20_000):
    """The posterior mean of one singular value: empirical Bayes by alternating updates.

    Of one direction: a ~ N(0, p), b ~ N(0, q), observed value of the noise's variance. The updates
    are those of variational Bayes (section 2 of the paper), with the priors estimated too.
    """
    a = b = math.sqrt(value)
    p = q = value / math.sqrt(rows * columns)
    va = vb = noise / value
    for _ in range(steps):
        va = noise / (b * b + rows * vb + noise / p)
        a = value * b * va / noise
        vb = noise / (a * a + columns * va + noise / q)
        b = value * a * vb / noise
        p, q = a * a / columns + va, b * b / rows + vb
    return a * b


def test_values_are_those_of_the_iterated_updates():
    matrix = planted(30, 50, 3, 0.5)
    found = vbmf(matrix)
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    wanted = [iterated(v, 30, 50, found.noise) for v in values[:3]]
    np.testing.assert_allclose(found.values.numpy(), wanted, rtol=1e-3)
    # Below the threshold the updates end at nothing.
    assert iterated(values[3], 30, 50, found.noise) < 1e-3 * values[3]


def test_zeros_have_no_rank():
    assert vbmf(torch.zeros(5, 9)).rank == 0


@pytest.mark.parametrize(
    "matrix", [torch.zeros(3), torch.zeros(3, 3, dtype=torch.int), torch.full((4, 4), torch.nan)]
)
def test_what_is_no_matrix_is_refused(matrix):
    with pytest.raises(tersor.InputError, match=r"matrix"):
        vbmf(matrix)
