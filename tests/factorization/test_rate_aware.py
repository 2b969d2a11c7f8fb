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

from tersor.factorization import rate_aware as ra
from tersor.factorization.rate import (
    CURVATURES,
    LARGEST,
    EntropyModel,
    count_magnitudes,
    distortion_bound,
    fit,
)
from tersor.factorization.rate_aware import (
    PRICE,
    codebook_exponent,
    drop_rows,
    factorize_weight,
    thresholds,
    update_codebook,
    update_latent,
)
from tersor.factorization.solve import Quadratic, distortion
from tersor.factors import EXACT_INTEGERS, Factors, largest_sum, signal_to_noise

seeds = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(a: Factors, b: Factors) -> bool:
    """Whether two factors hold the same integers."""
    pairs = ((a.codebook, b.codebook), (a.latent, b.latent))
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


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


@pytest.mark.parametrize("energy", [1.0, 1e3, 1e6])
def test_rounded_codebooks_are_multiples_of_a_power_of_two_of_8_bits(energy):
    codebook = ra.round_codebook(laplacian(9, 9), torch.full((9,), energy))
    integers = codebook * 2.0 ** -ra.codebook_exponent(codebook)
    assert torch.equal(integers, integers.round())
    assert float(integers.abs().max()) <= ra.CODEBOOK_LARGEST


@given(
    zero=st.integers(0, 255),
    decay=st.integers(0, 255),
    curvature=st.integers(0, CURVATURES - 1),
    largest=st.integers(1, 40),
    price=st.floats(1e-3, 4 * PRICE),
)
def test_thresholds_of_any_model(
    zero: int, decay: int, curvature: int, largest: int, price: float
) -> None:
    """Any tables, at prices up to four times ours: for more, see what `thresholds` says."""
    bits = EntropyModel(np.array([zero]), np.array([decay]), curvature, largest).bits()
    table = thresholds(bits, np.array([price]))[0]
    assert (np.diff(table) >= 0).all()
    u = np.linspace(0, largest + 3, 2003)[1:]
    costs = (u[:, None] - np.arange(largest + 1)) ** 2 + price * bits[0]
    chosen = (u[:, None] > table).sum(axis=1)
    excess = costs[np.arange(len(u)), chosen] - costs.min(axis=1)
    assert excess.max() <= 1e-9 * costs.min(axis=1).max()


def priced(tiles: Tensor, codebook: Tensor, latent: Tensor, bits: np.ndarray) -> float:
    """Distortion + price * bits under a given table of bits per row and magnitude."""
    magnitudes = latent.abs().long().numpy()
    spent = np.take_along_axis(bits, magnitudes, axis=1).sum()
    return distortion(tiles, codebook, latent) + PRICE * float(spent)


@given(seed=seeds, spread=st.floats(0.3, 6), skew=st.floats(0, 1))
def test_update_never_raises_the_cost_under_its_model(
    seed: int, spread: float, skew: float
) -> None:
    tiles = normal(seed, 4, 50) * spread
    codebook = torch.linalg.qr(normal(seed + 1, 4, 4)).Q + skew * normal(seed + 2, 4, 4)
    latent = (codebook.T @ tiles).round()
    bits = fit(count_magnitudes(latent)).bits()
    before = priced(tiles, codebook, latent, bits)
    updated = update_latent(Quadratic(codebook, tiles), latent)
    assert torch.equal(updated, updated.round())
    assert updated.abs().amax() <= latent.abs().amax()
    assert priced(tiles, codebook, updated, bits) <= before * (1 + 1e-6) + 1e-5


def test_update_is_the_best_integer_of_a_row() -> None:
    tiles, codebook = normal(0, 3, 40) * 3, normal(1, 3, 1)
    latent = (codebook.T @ tiles / (codebook**2).sum()).round()
    bits = fit(count_magnitudes(latent)).bits()
    updated = update_latent(Quadratic(codebook, tiles), latent)
    candidates = torch.arange(-(bits.shape[1] - 1), bits.shape[1]).float()
    errors = ((tiles[:, :, None] - codebook[:, :, None] * candidates) ** 2).sum(dim=0)
    costs = errors + PRICE * torch.from_numpy(bits[0])[candidates.abs().long()]
    assert torch.equal(updated[0], candidates[costs.argmin(dim=1)])


def test_blocks_of_tiles_are_updated_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, codebook = normal(0, 4, 100) * 2, normal(1, 4, 4)
    latent = (codebook.T @ tiles).round()
    whole = update_latent(Quadratic(codebook, tiles), latent)
    monkeypatch.setattr(ra, "_COLUMNS_AT_ONCE", 7)
    assert torch.equal(update_latent(Quadratic(codebook, tiles), latent), whole)


def test_rows_that_are_not_worth_their_bits_are_dropped() -> None:
    tiles = normal(0, 2, 200) * torch.tensor([[5.0], [0.3]])
    latent = tiles.round()
    kept = drop_rows(Quadratic(torch.eye(2), tiles), latent, column_bits=12)
    assert torch.equal(kept[0], latent[0])
    assert not kept[1].any()


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
    monkeypatch.setattr(ra, "EXACT_INTEGERS", limit)
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
    assert signal_to_noise(weight, factors) > 10 * math.log10(energy / bound) - 1.4
