"""The default factorization."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.factorization import rate_aware as ra
from tersor.factorization.rate import count_magnitudes, distortion_bound, fit
from tersor.factorization.solve import Quadratic, distortion
from tersor.factors import signal_to_noise


def laplacian(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.laplace(size=shape)).float()


@pytest.mark.parametrize("price", [0.01, 0.1155, 0.5])
def test_thresholds_find_the_cheapest_magnitude(price):
    integers = laplacian(3, 4000).mul(torch.tensor([[0.5], [1.0], [3.0]])).round()
    bits = fit(count_magnitudes(integers)).bits()
    table = ra.thresholds(bits, np.full(3, price))
    values = np.linspace(0, bits.shape[1] + 1, 2001)
    for row in range(3):
        costs = (values[:, None] - np.arange(bits.shape[1])) ** 2 + price * bits[row]
        chosen = (values[:, None] > table[row]).sum(axis=1)
        np.testing.assert_allclose(costs[np.arange(2001), chosen], costs.min(axis=1), atol=1e-9)


def test_an_update_lowers_error_plus_price_times_bits_of_the_model():
    tiles = laplacian(9, 500)
    codebook = ra.principal_axes(tiles) * 1.1 + 0.05 * laplacian(9, 9, seed=1)
    latent = (codebook.T @ tiles).round()
    bits = fit(count_magnitudes(latent)).bits()

    def cost(z: torch.Tensor) -> float:
        spent = np.take_along_axis(bits, z.abs().long().numpy(), axis=1).sum()
        return distortion(tiles, codebook, z) + ra.PRICE * float(spent)

    assert cost(ra.update_latent(Quadratic(codebook, tiles), latent)) < cost(latent)


@pytest.mark.parametrize("step", [0.3, 1.0, 2.0])
def test_it_never_ends_worse_than_it_started(step):
    tiles = laplacian(9, 400) / step
    result = ra.solve_rate_aware(tiles)
    value = distortion(tiles, result.codebook, result.latent)
    value += ra.penalty(result.codebook, result.latent)
    assert value == pytest.approx(min(result.history), rel=1e-6)
    assert value <= result.history[0]


@pytest.mark.parametrize("step", [0.5, 1.0, 1.5])
def test_gaussian_weights_are_within_1_6_db_of_the_bound(step):
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    factors = ra.factorize_weight(weight, 1, step)
    bound = distortion_bound(np.ones(1), factors.bits_per_weight)
    assert signal_to_noise(weight, factors) > -10 * np.log10(bound) - 1.6


def test_correlated_tiles_gain_from_the_transform():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(16, 16, generator=generator) * torch.logspace(0, -2, 16)
    weight = (torch.randn(4096, 16, generator=generator) @ mix.T).reshape(256, 256)
    step = float(weight.std()) * 0.7
    one, sixteen = (ra.factorize_weight(weight, tile, step) for tile in (1, 16))
    assert sixteen.nbytes < 0.8 * one.nbytes
    assert signal_to_noise(weight, sixteen) > signal_to_noise(weight, one) - 0.5


def test_rank_falls_below_the_tile_where_the_spectrum_allows():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 3, generator=generator) @ torch.randn(3, 12, generator=generator)
    factors = ra.factorize_weight(weight, 12, float(weight.std()) * 0.5)
    assert factors.rank == 3


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(8, 8),
        torch.full((8, 8), 0.5),
        laplacian(64, 64) * 2.0**50,
        laplacian(64, 64) * 2.0**-50,
        laplacian(1, 64),
        laplacian(64, 1),
        laplacian(17, 13),
        laplacian(64, 4) @ laplacian(4, 64, seed=1),
        torch.nn.functional.pad(torch.full((1, 1), 1e6), (0, 63, 0, 63)),
    ],
    ids=[
        "zero",
        "constant",
        "huge",
        "tiny",
        "one-row",
        "one-column",
        "prime",
        "rank-deficient",
        "outlier",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odd_weights(weight, dtype):
    weight = weight.to(dtype)
    tile = min(8, weight.shape[1])
    factors = ra.factorize_weight(weight, tile, float(weight.std()) * 0.1 or 1.0)
    rebuilt = factors.recompose()
    assert rebuilt.shape == weight.shape and rebuilt.dtype == dtype
    assert bool(rebuilt.isfinite().all())
    error = float((rebuilt - weight).double().norm())
    assert error <= 0.15 * float(weight.double().norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_keep_their_type(dtype):
    weight = laplacian(32, 32).to(dtype)
    assert ra.factorize_weight(weight, 8, 0.1).recompose().dtype == dtype


def test_a_scaled_weight_has_the_same_integers():
    weight = laplacian(64, 48)
    a, b = ra.factorize_weight(weight, 8, 0.5), ra.factorize_weight(weight * 1024, 8, 512.0)
    assert torch.equal(a.latent, b.latent) and torch.equal(a.codebook, b.codebook)
    assert b.scale == 1024 * a.scale


def test_tiny_steps_are_enlarged_until_integers_can_be_coded():
    weight = laplacian(64, 64)
    factors = ra.factorize_weight(weight, 16, 1e-9)
    assert int(factors.latent.abs().max()) <= ra.LARGEST
    assert signal_to_noise(weight, factors) > 50
    assert factors.nbytes > 0


@pytest.mark.parametrize("tile", [1, 9, 27])
def test_threads_do_not_matter(tile):
    weight, before = laplacian(64, 9, 3, 3), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(ra.factorize_weight(weight, tile, 0.7))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0].latent, results[1].latent)
    assert torch.equal(results[0].codebook, results[1].codebook)


@pytest.mark.parametrize("energy", [1.0, 1e3, 1e6])
def test_rounded_codebooks_are_multiples_of_a_power_of_two_of_8_bits(energy):
    codebook = ra.round_codebook(laplacian(9, 9), torch.full((9,), energy))
    integers = codebook * 2.0 ** -ra.codebook_exponent(codebook)
    assert torch.equal(integers, integers.round())
    assert float(integers.abs().max()) <= ra.CODEBOOK_LARGEST
