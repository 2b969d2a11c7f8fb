# SPDX-License-Identifier: Apache-2.0
"""Baselines get the bytes that were asked for, and do what they say."""

from __future__ import annotations

import pytest
import torch

from tersor.compression import baselines
from tersor.storage.checkpoint import Source

pytest.importorskip("sklearn", reason="k-means needs scikit-learn, as `make test` installs it")


def source() -> Source:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "conv.weight": torch.randn(32, 16, 3, 3, generator=generator),
        "linear.weight": torch.randn(64, 64, generator=generator),
        "linear.bias": torch.randn(64, generator=generator),
    }
    size = sum(t.nbytes for t in tensors.values())
    return Source(list(tensors), tensors.__getitem__, size)


@pytest.mark.parametrize("method", [baselines.scalar, baselines.vector_quantization])
def test_budgets_are_kept_and_used_and_more_bytes_are_better(method) -> None:
    given = source()
    targets = [1500, 3000]
    errors = []
    for (size, weights), target in zip(method(given, targets), targets, strict=True):
        assert 0.9 * target <= size <= target
        assert set(weights) == {"conv.weight", "linear.weight"}
        errors.append(sum(float(((given.load(n) - w) ** 2).sum()) for n, w in weights.items()))
    assert errors[1] < errors[0] < sum(float((given.load(n) ** 2).sum()) for n in weights)


def test_scalar_weights_are_multiples_of_one_step() -> None:
    ((_, weights),) = baselines.scalar(source(), [3000])
    step = min(float(w[w > 0].min()) for w in weights.values())
    for weight in weights.values():
        multiples = weight / step
        torch.testing.assert_close(multiples, multiples.round())


def test_vector_quantization_repeats_few_tiles() -> None:
    ((_, weights),) = baselines.vector_quantization(source(), [3000])
    tiles = weights["conv.weight"].reshape(-1, 9)
    assert len(tiles.unique(dim=0)) <= len(tiles) // 2
