# SPDX-License-Identifier: Apache-2.0
"""The calibrated solver: the error of the output, not of the weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tersor.coding import entropy, records
from tersor.factorization.calibrated import Metric, solve_calibrated
from tersor.factorization.rate_aware import Coder
from tersor.factorization.weights import factorize_binary, factorize_weight
from tersor.tiling import Tiling, coding_order, natural_order


def correlated(inputs: int, seed: int = 0) -> Tensor:
    """Second moments of inputs of different strengths that go together."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, 2 * inputs, generator=generator)
    mixing *= torch.logspace(-1, 1, inputs)[:, None]
    mixing += 2 * torch.randn(1, 2 * inputs, generator=generator)
    return mixing @ mixing.T / (2 * inputs)


def output_error(weight: Tensor, restored: Tensor, moments: Tensor) -> float:
    error = (weight - restored).reshape(len(weight), -1).double()
    return float(((error @ moments.double()) * error).sum())


def test_the_metric_is_what_is_left_when_later_positions_make_up():
    moments = correlated(12)
    metric = Metric.of(moments, 4)
    h = moments.double() / moments.diagonal().double().mean()
    error = torch.randn(4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # The best real errors of the later positions, given that of the first.
    later = -torch.linalg.solve(h[4:, 4:], h[4:, :4] @ error)
    whole = torch.cat([error, later])
    torch.testing.assert_close(metric.local[0].double() @ error @ error, whole @ h @ whole)
    torch.testing.assert_close(
        error @ metric.feedback[0][:, 4:].double(), later, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("tile", [1, 4, 8])
@pytest.mark.parametrize("states", [1, 8, 32])
def test_outputs_are_closer_at_no_more_bytes(tile: int, states: int):
    weight = torch.randn(96, 32, generator=torch.Generator().manual_seed(2))
    moments = correlated(32)
    plain = factorize_weight(weight, tile, 0.8, states=states)
    allowed = records.encode(plain).nbytes
    candidates = [
        factorize_weight(weight, tile, step, moments=moments, states=states)
        for step in (0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5)
    ]
    fitting = [f for f in candidates if records.encode(f).nbytes <= allowed]
    best = min(output_error(weight, f.recompose(), moments) for f in fitting)
    assert best < 0.8 * output_error(weight, plain.recompose(), moments)


@pytest.mark.parametrize("shape", [(40, 7), (17, 3, 3, 3), (3, 50), (70, 1)])
def test_latents_stay_on_the_trellis(shape: tuple[int, ...]):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    length = weight[0].numel()
    for tile in (1, min(3, length)):
        factors = factorize_weight(
            weight, tile, 0.3, moments=correlated(length) + torch.eye(length)
        )
        assert entropy.trellis_of(coding_order(factors.latent, shape[0]), shape[0]) > 1
        assert torch.equal(
            records.decode(records.encode(factors), shape, weight.dtype).latent, factors.latent
        )


def test_the_result_is_the_best_of_its_history_and_deterministic():
    weight = torch.randn(64, 24, generator=torch.Generator().manual_seed(4)) / 0.7
    moments = correlated(24)
    runs = [solve_calibrated(weight, moments, 8) for _ in range(2)]
    assert torch.equal(runs[0].latent, runs[1].latent)
    assert torch.equal(runs[0].codebook, runs[1].codebook)
    tiling = Tiling((64, 24), 8)
    restored = tiling.join(natural_order(runs[0].codebook @ runs[0].latent, 64))
    cost = output_error(weight, restored, moments / moments.diagonal().mean())
    cost += Coder(64).penalty(runs[0].codebook, runs[0].latent)
    assert cost == pytest.approx(min(runs[0].history), rel=1e-4)


# One of each kind that is hard to scale, factor or cut: the moments may be any multiple as well.
HARD = {
    "constant": torch.full((31, 17), 0.3),
    "rank one": torch.outer(torch.linspace(-1, 1, 32), torch.linspace(0, 3, 24)),
    "large": 1e17 * torch.randn(32, 24, generator=torch.Generator().manual_seed(6)),
    "denormal": 1e-40 * torch.randn(32, 24, generator=torch.Generator().manual_seed(7)),
    "one column": torch.randn(97, 1, generator=torch.Generator().manual_seed(8)),
    "one row": torch.randn(1, 64, generator=torch.Generator().manual_seed(9)),
    "prime": torch.randn(31, 37, generator=torch.Generator().manual_seed(10)),
}


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("step", [1e-6, 0.3, 1e6])
@pytest.mark.parametrize("name", HARD)
def test_hard_weights_are_factored(name: str, step: float, unit: float):
    weight = HARD[name]
    length = weight[0].numel()
    moments = unit * (correlated(length) + torch.eye(length))
    for tile in {1, min(3, length), length}:
        factors = factorize_weight(weight, tile, step * float(weight.abs().amax()), moments=moments)
        records.encode(factors)
        restored = factors.recompose()
        assert restored.isfinite().all()
        if step == 1e-6 and name != "denormal":  # as fine as can be coded
            # Of rank one, the 8 bits of the only column are the limit: its elements for strong and
            # weak inputs differ a hundredfold here.
            limit = 0.1 if name == "rank one" else 0.02
            error = output_error(weight, restored, moments) ** 0.5
            assert error < limit * output_error(weight, 0 * weight, moments) ** 0.5


def test_zero_weights_need_no_latent():
    factors = factorize_weight(torch.zeros(8, 8), 4, 1.0, moments=torch.eye(8))
    assert factors.rank == 0


def test_a_step_too_coarse_leaves_nothing():
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(5))
    assert factorize_weight(weight, 4, 1e4, moments=torch.eye(16)).rank == 0


@pytest.mark.parametrize("tile, inputs", [(8, 32), (7, 32), (16, 20)])
def test_outputs_are_closer_with_signs_too(tile: int, inputs: int):
    weight = torch.randn(96, inputs, generator=torch.Generator().manual_seed(2))
    moments = correlated(inputs)
    plain, better = factorize_binary(weight, tile), factorize_binary(weight, tile, moments=moments)
    assert better.quantized and (better.latent.abs() == 1).all()
    assert better.latent.shape == plain.latent.shape
    errors = [output_error(weight, f.recompose(), moments) for f in (plain, better)]
    assert errors[1] < 0.7 * errors[0]


def test_zero_weights_need_no_signs():
    assert factorize_binary(torch.zeros(9, 16), 4, moments=correlated(16)).rank == 0
