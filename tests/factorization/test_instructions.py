# SPDX-License-Identifier: Apache-2.0
"""The same factors whatever the instruction set and the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tersor import _native
from tersor.factorization.weights import factorize_weight


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    _native.use_instructions(_native.instructions()[0])


def made(weight: Tensor, tile: int, states: int, moments: Tensor | None) -> tuple[Tensor, Tensor]:
    factors = factorize_weight(weight, tile, 0.8, states=states, moments=moments)
    return factors.codebook, factors.latent


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(("tile", "states"), [(1, 1), (1, 32), (7, 4), (16, 8), (48, 16), (12, 64)])
def test_same_factors_everywhere(tile: int, states: int, calibrated: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(130, 96, generator=generator)
    weight[3, 5] = 40.0  # an index that is not in the table of costs
    inputs = torch.randn(300, 96, generator=generator)
    moments = inputs.T @ inputs / 300 if calibrated else None
    results = []
    for name in _native.instructions():
        for threads in (1, 2):
            _native.use_instructions(name)
            torch.set_num_threads(threads)
            results.append(made(weight, tile, states, moments))
    for codebook, latent in results[1:]:
        assert torch.equal(codebook, results[0][0])
        assert torch.equal(latent, results[0][1])


def test_unknown_instructions_are_refused() -> None:
    with pytest.raises(ValueError, match="no such instructions"):
        _native.use_instructions("")
