"""The calibrated solver: the error of the output, not of the weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tersor.factorization.calibrated import Metric, solve_calibrated
from tersor.factorization.weights import factorize_weight
from tersor.storage import entropy, records
from tersor.tiling import coding_order


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
    runs = [solve_calibrated(weight, correlated(24), 8) for _ in range(2)]
    assert torch.equal(runs[0].latent, runs[1].latent)
    assert torch.equal(runs[0].codebook, runs[1].codebook)
    assert len(runs[0].history) >= 1


def test_zero_weights_need_no_latent():
    factors = factorize_weight(torch.zeros(8, 8), 4, 1.0, moments=torch.eye(8))
    assert factors.rank == 0


def test_a_step_too_coarse_leaves_nothing():
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(5))
    assert factorize_weight(weight, 4, 1e4, moments=torch.eye(16)).rank == 0
