# SPDX-License-Identifier: Apache-2.0
"""The default factorization."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tersor
from tersor import _native
from tersor.coding.rate import LARGEST, TRELLISES, distortion_bound
from tersor.factorization import rate_aware as ra
from tersor.factorization import weights
from tersor.factorization.rate_aware import (
    LAGRANGIAN,
    Coder,
    codebook_exponent,
    solve_rate_aware,
    update_codebook,
)
from tersor.factorization.solve import Quadratic, distortion
from tersor.factorization.weights import factorize_weight
from tersor.factors import EXACT_INTEGERS, Factors, largest_sum, signal_to_noise
from tersor.nn import insert_factors

seeds = st.integers(0, 2**31)
STATES = (1, *sorted(TRELLISES))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(a: Factors, b: Factors) -> bool:
    """Whether two factors hold the same integers."""
    pairs = ((a.codebook, b.codebook), (a.latent, b.latent))
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


def laplacian(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.laplace(size=shape)).float()


def objective(tiles: Tensor, codebook: Tensor, latent: Tensor, rows: int, states: int) -> float:
    """Distortion + λ * bits, coded anew."""
    spent = Coder(rows, states).penalty(codebook, latent)
    return distortion(tiles, codebook, latent) + spent


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("step", [0.3, 1.0, 2.0])
def test_it_never_ends_worse_than_it_started(step: float, states: int) -> None:
    tiles = laplacian(9, 400) / step
    result = solve_rate_aware(tiles, 20, states=states)
    value = objective(tiles, result.codebook, result.latent, 20, states)
    assert value == pytest.approx(min(result.history), rel=1e-6)
    assert value <= result.history[0]
    begin = ra.start(tiles, Coder(20, states))
    assert result.history[0] == pytest.approx(objective(tiles, *begin, 20, states), rel=1e-6)


@pytest.mark.parametrize("states", STATES)
def test_latents_are_on_the_trellis(states: int) -> None:
    tiles = laplacian(4, 9000)
    for latent in (
        solve_rate_aware(tiles, 90, states=states).latent,
        ra.start(tiles, Coder(90, states))[1],
    ):
        assert torch.equal(latent, latent.round())
        assert _native.reachable(latent.to(torch.int16).contiguous().numpy(), 90, states)


@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 4)),
    spread=st.sampled_from([0.01, 0.5, 3.0, 100.0]),
    states=st.sampled_from(STATES),
)
def test_small_and_odd_tiles(
    seed: int, shape: tuple[int, int, int], spread: float, states: int
) -> None:
    d, rows, per_row = shape
    tiles = spread * normal(seed, d, rows * per_row)
    result = solve_rate_aware(tiles, rows, states=states)
    value = objective(tiles, result.codebook, result.latent, rows, states)
    assert value <= result.history[0] * (1 + 1e-6)
    # Nothing at all is a solution too; as rows are dropped one by one it may be better, not by far.
    assert value <= 1.1 * float((tiles**2).sum()) + 1e-6


def test_more_states_have_a_lower_objective() -> None:
    tiles = normal(0, 1, 40_000) * 4
    values = [min(solve_rate_aware(tiles, 200, states=states).history) for states in STATES]
    assert all(a > b for a, b in itertools.pairwise(values))


def test_the_same_each_time() -> None:
    weight = normal(0, 40, 24, 3, 3)
    assert same(factorize_weight(weight, 9, 0.5), factorize_weight(weight, 9, 0.5))


@pytest.mark.parametrize("step", [0.5, 1.0, 1.5])
def test_gaussian_weights_are_near_the_bound(step):
    """Scalar quantization loses 1.5 dB."""
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    factors = factorize_weight(weight, 1, step)
    bound = distortion_bound(np.ones(1), factors.bits_per_weight)
    assert signal_to_noise(weight, factors) > -10 * np.log10(bound) - 0.75


def test_correlated_tiles_gain_from_the_transform():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(16, 16, generator=generator) * torch.logspace(0, -2, 16)
    weight = (torch.randn(4096, 16, generator=generator) @ mix.T).reshape(256, 256)
    step = float(weight.std()) * 0.7
    one, sixteen = (factorize_weight(weight, tile, step) for tile in (1, 16))
    assert sixteen.nbytes < 0.8 * one.nbytes
    assert signal_to_noise(weight, sixteen) > signal_to_noise(weight, one) - 0.5


def test_rank_falls_below_the_tile_where_the_spectrum_allows():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 3, generator=generator) @ torch.randn(3, 12, generator=generator)
    factors = factorize_weight(weight, 12, float(weight.std()) * 0.5)
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
    factors = factorize_weight(weight, tile, float(weight.std()) * 0.1 or 0.1)
    rebuilt = factors.recompose()
    assert rebuilt.shape == weight.shape and rebuilt.dtype == dtype
    assert bool(rebuilt.isfinite().all())
    error = float((rebuilt - weight).double().norm())
    assert error <= 0.15 * float(weight.double().norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_keep_their_type(dtype):
    weight = laplacian(32, 32).to(dtype)
    assert factorize_weight(weight, 8, 0.1).recompose().dtype == dtype


def test_a_scaled_weight_has_the_same_integers():
    weight = laplacian(64, 48)
    a, b = factorize_weight(weight, 8, 0.5), factorize_weight(weight * 1024, 8, 512.0)
    assert torch.equal(a.latent, b.latent) and torch.equal(a.codebook, b.codebook)
    assert b.scale == 1024 * a.scale


def test_tiny_steps_are_enlarged_until_integers_can_be_coded():
    weight = laplacian(64, 64)
    factors = factorize_weight(weight, 16, 1e-9)
    assert int(factors.latent.abs().max()) <= LARGEST
    assert signal_to_noise(weight, factors) > 50
    assert factors.nbytes > 0


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("tile", [1, 8, 24])
def test_one_large_weight_does_not_make_all_others_coarse(tile: int, calibrated: bool, tmp_path):
    weight = torch.randn(96, 24, generator=torch.Generator().manual_seed(0))
    weight[3, 5] = 4000.0
    factors = factorize_weight(weight, tile, 0.2, moments=torch.eye(24) if calibrated else None)
    assert factors.rank > tile and factors.latent.abs().max() <= LARGEST
    assert (weight - factors.recompose()).abs().max() < 0.4  # 0.98 is the least step of one part
    module = torch.nn.Linear(24, 96, bias=False)
    insert_factors(module, {"weight": factors})
    tersor.save(module, tmp_path / "model.tersor")
    read = tersor.load_state_dict(tmp_path / "model.tersor")["weight"]
    assert torch.equal(read, factors.recompose())
    x = torch.randn(5, 24)
    wanted = module(x)
    tersor.optimize(module, inputs=x)
    torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("energy", [1.0, 1e3, 1e6])
def test_rounded_codebooks_are_multiples_of_a_power_of_two_of_8_bits(energy):
    codebook = ra.round_codebook(laplacian(9, 9), torch.full((9,), energy))
    integers = codebook * 2.0 ** -ra.codebook_exponent(codebook)
    assert torch.equal(integers, integers.round())
    assert float(integers.abs().max()) <= ra.CODEBOOK_LARGEST


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("spread", [0.5, 2.0, 8.0])
def test_a_search_lowers_error_plus_price_times_bits(spread: float, states: int) -> None:
    """Bits as coded afterwards: the costs are those of the latent before."""
    tiles = laplacian(6, 3000) * spread
    codebook, latent = ra.start(tiles, Coder(100, states))
    coder = Coder(100, states)
    quadratic = Quadratic(codebook, tiles)
    improved = coder.update(quadratic, latent)
    before, after = (
        distortion(tiles, codebook, z) + LAGRANGIAN * float(coder.bits(z).sum())
        for z in (latent, improved)
    )
    assert after < before


def test_a_search_leaves_its_arguments() -> None:
    tiles = laplacian(3, 60)
    coder = Coder(10, 8)
    codebook, latent = ra.start(tiles, coder)
    copies = tiles.clone(), codebook.clone(), latent.clone()
    coder.update(Quadratic(codebook, tiles), latent)
    assert all(torch.equal(a, b) for a, b in zip(copies, (tiles, codebook, latent), strict=True))


def test_a_coder_knows_one_latent_from_another() -> None:
    coder = Coder(10, 1)
    small, large = torch.ones(1, 100), torch.arange(100.0)[None]
    first = coder.bits(small).copy()
    assert coder.bits(large) > 3 * first
    assert np.array_equal(coder.bits(small), first)


def test_rows_that_are_not_worth_their_bits_are_dropped() -> None:
    """The second row holds one large number, which avoids less error than its column costs."""
    tiles = torch.zeros(64, 200)
    tiles[0], tiles[1, 17] = 5 * normal(0, 200), 4.0
    coder, quadratic = Coder(20, 1), Quadratic(torch.eye(64)[:, :2], tiles)
    latent = tiles[:2].round()
    kept = coder.update(quadratic, latent)
    assert kept[0].any() and not kept[1].any()
    tiles[1, ::20] = 40.0
    assert coder.update(Quadratic(torch.eye(64)[:, :2], tiles), latent)[1].any()


@given(seed=seeds, exponent=st.integers(-20, 5))
def test_the_exponent_of_a_codebook(seed: int, exponent: int) -> None:
    integers = normal(seed, 4, 3).mul(40).round()
    integers[0, 0] = 1
    assert codebook_exponent(integers * 2.0**exponent) == exponent
    assert codebook_exponent(torch.zeros(4, 3)) == 0
    assert codebook_exponent(torch.zeros(4, 0)) == 0


def test_the_codebook_update_fits_and_rounds() -> None:
    tiles, latent = normal(0, 4, 500) * 4, normal(1, 4, 500).mul(2).round()
    update = update_codebook(Quadratic(latent.T, tiles.T), torch.zeros(4, 4))
    exact = torch.linalg.lstsq(latent.T, tiles.T).solution
    step = 2.0 ** codebook_exponent(update)
    assert (update - exact).abs().amax() <= step / 2 + 1e-5


EXTREMES = {
    "one weight": torch.tensor([[0.7]]),
    "one large row": torch.zeros(6, 8).index_fill_(0, torch.tensor([2]), 1e30),
    "1e38": normal(0, 6, 8).sign() * 1e38,
    "1e30": normal(2, 6, 8) * 1e30,
    "1e-30": normal(3, 6, 8) * 1e-30,
    "denormal": normal(4, 6, 8) * 1e-41,
    "smallest": torch.full((6, 8), 1e-45),
    "kernels": normal(6, 5, 3, 3, 3),
    "wide range": normal(9, 12, 8) * torch.logspace(-20, 0, 12)[:, None],
}


@pytest.mark.parametrize("tile", [1, 3, 8])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_weights(name: str, tile: int) -> None:
    weight = EXTREMES[name]
    tile = min(tile, weight[0].numel())
    step = 0.1 * float(weight.double().square().mean().sqrt())
    factors = factorize_weight(weight, tile, step)
    assert largest_sum(factors.codebook, factors.latent) <= EXACT_INTEGERS
    error = (factors.recompose().double() - weight.double()).abs().amax()
    assert error <= max(4 * math.sqrt(tile) * step, 1e-32)


@pytest.mark.parametrize("tile", [1, 3])
def test_a_step_too_small_is_enlarged(tile: int) -> None:
    weight = normal(0, 30, 12)
    factors = factorize_weight(weight, tile, 1e-20)
    assert factors.latent.abs().amax() <= LARGEST
    assert signal_to_noise(weight, factors) > 45


def test_products_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(0, 40, 24)
    plain = factorize_weight(weight, 12, 0.02)
    limit = largest_sum(plain.codebook, plain.latent) // 4
    monkeypatch.setattr(weights, "EXACT_INTEGERS", limit)
    coarse = factorize_weight(weight, 12, 0.02)
    assert largest_sum(coarse.codebook, coarse.latent) <= limit
    assert signal_to_noise(weight, coarse) > 10


@given(seed=seeds, exponent=st.integers(-60, 60), step=st.floats(0.1, 2))
def test_powers_of_two_change_nothing_but_the_scale(seed: int, exponent: int, step: float) -> None:
    weight, factor = normal(seed, 9, 10), 2.0**exponent
    plain = factorize_weight(weight, 5, step)
    scaled = factorize_weight(factor * weight, 5, factor * step)
    assert same(plain, scaled)
    assert scaled.scale == factor * plain.scale


def test_finer_steps_have_smaller_errors() -> None:
    weight = normal(0, 60, 36)
    ratios = [
        signal_to_noise(weight, factorize_weight(weight, 9, s)) for s in (2, 1, 0.5, 0.2, 0.1)
    ]
    assert all(a < b for a, b in itertools.pairwise(ratios))


@pytest.mark.parametrize(
    "shape, tile", [((48, 40, 3, 3), 9), ((64, 40, 3, 3), 36), ((300, 256), 32), ((4000, 64), 64)]
)
def test_the_same_for_any_number_of_threads(shape: tuple[int, ...], tile: int) -> None:
    weight = normal(0, *shape) * normal(1, shape[0]).abs().reshape(-1, *[1] * (len(shape) - 1))
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            results.append(factorize_weight(weight, tile, 0.4))
    finally:
        torch.set_num_threads(threads)
    assert all(same(results[0], other) for other in results[1:])


@pytest.mark.parametrize("steps", [0.6, 1.5, 2.5])
@pytest.mark.parametrize("name", ["layer2.1.conv1.weight", "layer3.1.conv1.weight"])
def test_real_layers_are_near_the_bound(layers: dict[str, Tensor], name: str, steps: float) -> None:
    weight = layers[name]
    factors = factorize_weight(weight, 9, steps * float(weight.std()))
    tiles = weight.reshape(-1, 9).double()
    spectrum = torch.linalg.eigvalsh(tiles.T @ tiles / len(tiles)).numpy()
    bound = distortion_bound(spectrum, factors.bits_per_weight)
    energy = float((tiles**2).mean())
    assert signal_to_noise(weight, factors) > 10 * math.log10(energy / bound) - 0.5
