# SPDX-License-Identifier: Apache-2.0
"""The calibrated solver where the inputs run along the first axis of a weight."""

from __future__ import annotations

import pytest
import torch
from test_calibrated import correlated, output_error
from torch import Tensor

from tersor import tiling
from tersor.coding import records
from tersor.factorization.transposed import _Metric
from tersor.factorization.weights import factorize_weight

STEPS = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5, 2.0)


def matrix(inputs: int, outputs: int) -> Tensor:
    return torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(2))


def least_error(weight: Tensor, moments: Tensor, tile: int, allowed: int, **options) -> float:
    """The least error of the output, over step sizes, of factors that fit."""
    first = options.get("inputs_first", False)
    found = [factorize_weight(weight, tile, step, moments=moments, **options) for step in STEPS]
    fitting = [f.recompose() for f in found if records.encode(f).nbytes <= allowed]
    errors = [(weight, f) if not first else (weight.T, f.T) for f in fitting]
    return min(output_error(*pair, moments) for pair in errors)


def test_the_metric_is_what_is_left_when_later_rows_make_up():
    moments = correlated(40)
    metric = _Metric.of(moments)
    h = moments.double() / moments.diagonal().double().mean()
    error = torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    later = -torch.linalg.solve(h[16:, 16:], h[16:, :16] @ error)
    torch.testing.assert_close(
        error @ metric.feedback[:16, 16:].double(), later, rtol=1e-4, atol=1e-5
    )
    alone = torch.cat([torch.ones(1).double(), torch.zeros(15).double()])
    whole = torch.cat([alone, -torch.linalg.solve(h[16:, 16:], h[16:, :16] @ alone)])
    torch.testing.assert_close(metric.local[0, 0].double(), whole @ h @ whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tile", [1, 4, 7])
@pytest.mark.parametrize("states", [1, 32])
@pytest.mark.parametrize("inputs", [32, 45])
def test_outputs_are_closer_at_no_more_bytes(tile: int, states: int, inputs: int):
    weight, moments = matrix(inputs, 96), correlated(inputs)
    plain = factorize_weight(weight, tile, 0.8, states=states)
    allowed = records.encode(plain).nbytes
    best = least_error(weight, moments, tile, allowed, inputs_first=True, states=states)
    assert best < 0.8 * output_error(weight.T, plain.recompose().T, moments)


def test_it_is_nearly_as_good_as_with_the_transposed_layout():
    weight, moments = matrix(256, 64), correlated(256)
    allowed = records.encode(factorize_weight(weight, 8, 0.8)).nbytes
    other = least_error(weight.T.contiguous(), moments, 8, allowed)
    assert least_error(weight, moments, 8, allowed, inputs_first=True) < 1.4 * other


@pytest.mark.parametrize("inputs", [256, 300])
def test_slices_are_coded_as_they_were_searched(monkeypatch, inputs: int):
    """A trellis that went on from another slice would not reach the integers."""
    weight, moments = matrix(inputs, 512), correlated(inputs)
    whole = factorize_weight(weight, 8, 0.8, moments=moments, inputs_first=True)
    monkeypatch.setattr(tiling, "SLICE", 1 << 12)
    factors = factorize_weight(weight, 8, 0.8, moments=moments, inputs_first=True)
    assert len(factors.tiling.slices) > 1
    encoded = records.encode(factors)
    assert encoded.coding.states == 32
    back = records.decode(encoded, factors.shape, factors.dtype)
    assert torch.equal(back.recompose(), factors.recompose())
    felt, expected = (output_error(weight.T, f.recompose().T, moments) for f in (factors, whole))
    assert felt < 1.1 * expected


def test_weights_beyond_the_largest_integer_keep_their_precision():
    weight, moments = matrix(32, 64), correlated(32)
    weight[3, 5] = 3e4
    factors = factorize_weight(weight, 4, 0.5, moments=moments, inputs_first=True)
    assert float((weight - factors.recompose()).square().mean()) < 1


def test_zeros():
    weight = torch.zeros(20, 24)
    factors = factorize_weight(weight, 4, 1.0, moments=correlated(20), inputs_first=True)
    assert not factors.recompose().any()
