# SPDX-License-Identifier: Apache-2.0
"""Independent Gaussian weights take their budget, at an error near the bound, at any rate."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import tersor
from tersor.factorization.weights import factorize_weight
from tersor.factors import signal_to_noise

DECIBELS = 20 * math.log10(2)


def gaussian(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed))


def share_and_gap(weight: torch.Tensor, rate: float) -> tuple[float, float]:
    """Share of the budget that is used, and dB below the Gaussian bound at the bytes taken."""
    factors = tersor.factorize(weight, bits_per_weight=rate).factors
    bits = factors.bits_per_weight
    return bits / rate, DECIBELS * bits - signal_to_noise(weight, factors)


@pytest.mark.parametrize("rate", [0.5, 0.8, 1.0, 1.2, 2.0, 3.0])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_small_weight(seed: int, rate: float) -> None:
    share, gap = share_and_gap(gaussian(256, seed), rate)
    assert 0.98 <= share <= 1
    assert gap < 0.85


@pytest.mark.parametrize("rate", [0.3, 0.4, 0.5])
def test_a_model_of_one_weight(rate: float) -> None:
    """A pass that takes no bytes says little about finer steps: the next must not go too far."""
    model = torch.nn.Linear(256, 256, bias=False)
    model.weight.data = gaussian(256, 0)
    report = tersor.compress(model, bits_per_weight=rate)
    assert 0.98 <= report.nbytes * 8 / 256**2 / rate <= 1


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_weight(seed: int, rate: float) -> None:
    share, gap = share_and_gap(gaussian(512, seed), rate)
    assert 0.98 <= share <= 1
    assert gap < 0.75


def test_bytes_fall_steadily_as_the_step_grows() -> None:
    """No row of many equal ones drops out alone, and no jump separates neighbouring steps."""
    weight = gaussian(256, 1)
    steps = [1.0 * 1.03**i for i in range(18)]
    sizes = [factorize_weight(weight, 1, step_size).nbytes for step_size in steps]
    for finer, coarser in itertools.pairwise(sizes):
        assert 0.7 * finer < coarser < 1.01 * finer
