# SPDX-License-Identifier: Apache-2.0
"""The known decompositions: the common contract, then each against an independent computation."""

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning, SparsePCA
from torch import Tensor

from tersor.errors import BudgetError, InputError
from tersor.factorization import initialize, methods
from tersor.factorization.additive import additive_bits, quantize_within
from tersor.factorization.decompose import Method, Solution, decompose, power_of_two
from tersor.factorization.projections import grid, integers, keep_largest, short_rows
from tersor.factorization.solve import Quadratic
from tersor.factorization.updates import nearest_column
from tersor.factorization.weights import factorize_weight
from tersor.tiling import Tiling

# Every method at settings that suit any weight of at least 3 tiles of at least 2 elements. Steps
# are in units of the largest weight.
METHODS: dict[str, Callable[[float], Method]] = {
    "weight_svd": lambda largest: methods.weight_svd(2),
    "vector_quantization": lambda largest: methods.vector_quantization(3),
    "additive_vector_quantization": lambda largest: methods.additive_vector_quantization(3, 2),
    "dictionary_learning": lambda largest: methods.dictionary_learning(3, 2, starts=2, restarts=2),
    "scalar": lambda largest: methods.scalar(0.3 * largest),
    "ternary": lambda largest: methods.ternary(),
    "binary": lambda largest: methods.binary(),
    "rate_aware": lambda largest: methods.rate_aware(0.3 * largest),
    "few_integers": lambda largest: methods.few_integers(2, 3),
    "binary_sums": lambda largest: methods.binary_sums(3),
    "projected_gradient": lambda largest: methods.projected_gradient(integers(2), 3),
    "a projection of one's own": lambda largest: methods.projected_gradient(
        lambda y: y.clamp_min(0), 3, project_codebook=short_rows()
    ),
}
ROUNDED = ("rate_aware", "few_integers", "binary_sums")
INTEGER = ("scalar", "ternary", "binary", *ROUNDED)
MONOTONE = [name for name in METHODS if name not in ROUNDED]  # codebooks are rounded
EXACT = ("weight_svd", "vector_quantization", "dictionary_learning")

every_method = pytest.mark.parametrize("name", METHODS)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(name: str, weight: Tensor, tile: int, seed: int = 0) -> Solution:
    largest = float(weight.float().abs().amax()) or 1.0
    return decompose(weight, METHODS[name](largest), tile=tile, seed=seed)


def squared_error(weight: Tensor, solution: Solution) -> float:
    return float(((weight.double() - solution.factors.recompose().double()) ** 2).sum())


def objective(solution: Solution) -> float:
    return min(solution.history)


SHAPES = [((7, 11), 11), ((13, 5), 2), ((5, 3, 3, 3), 9), ((4, 3, 2, 2, 2), 6), ((3, 2), 2)]


@every_method
@pytest.mark.parametrize("shape, tile", SHAPES)
def test_contract(name: str, shape: tuple[int, ...], tile: int) -> None:
    weight = normal(1, *shape)
    solution = run(name, weight, tile)
    factors, history = solution.factors, solution.history
    assert factors.recompose().shape == shape
    assert factors.tiling == Tiling(shape, tile)
    dtype = torch.int16 if name in INTEGER else torch.float32
    assert factors.codebook.dtype == factors.latent.dtype == dtype
    assert factors.latent.any(dim=1).all()
    assert objective(solution) <= history[0]
    assert solution.status in ("converged", "iteration limit")
    if name in MONOTONE:
        slack = 1e-12 * float((weight**2).sum())
        assert all(b <= a + slack for a, b in itertools.pairwise(history))
    if name != "rate_aware":  # its objective counts bits, and others' that of the padding
        tiles = factors.tiling.split(weight).double()
        product = factors.codebook.double() @ factors.latent.double() * factors.scale
        error = float(((tiles - product) ** 2).sum())
        assert objective(solution) == pytest.approx(error, rel=1e-4, abs=1e-9)


@every_method
def test_the_seed_decides(name: str) -> None:
    weight = normal(2, 12, 10)
    first, second = run(name, weight, 5, seed=3), run(name, weight, 5, seed=3)
    assert first.history == second.history
    assert torch.equal(first.factors.codebook, second.factors.codebook)
    assert torch.equal(first.factors.latent, second.factors.latent)


@every_method
@pytest.mark.parametrize("scale", [1e30, 1e-30, 2.0**127])
def test_any_scale_gives_the_same_factors(name: str, scale: float) -> None:
    weight = normal(3, 8, 6) / 8
    power = 2.0 ** round(math.log2(scale))
    plain, scaled = run(name, weight, 3), run(name, weight * power, 3)
    assert torch.equal(plain.factors.latent, scaled.factors.latent)
    assert torch.equal(plain.factors.codebook, scaled.factors.codebook)
    assert scaled.factors.scale == plain.factors.scale * power
    assert objective(scaled) == pytest.approx(objective(plain) * power**2, rel=1e-6)


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_data_type_comes_back(name: str, dtype: torch.dtype) -> None:
    weight = normal(4, 6, 4).to(dtype)
    recomposed = run(name, weight, 2).factors.recompose()
    assert recomposed.dtype == dtype
    assert recomposed.isfinite().all()


@every_method
def test_zero_needs_no_factors(name: str) -> None:
    solution = run(name, torch.zeros(6, 4), 2)
    assert solution.factors.rank == 0
    assert solution.factors.quantized
    assert solution.history == (0.0,)
    assert torch.equal(solution.factors.recompose(), torch.zeros(6, 4))


@every_method
@pytest.mark.parametrize("value", [0.7, -1e30, 1e-40, 1e-45])
def test_constant(name: str, value: float) -> None:
    weight = torch.full((6, 4), value)
    solution = run(name, weight, 2)
    tolerance = 0.2 if name in ("scalar", "rate_aware") else 1e-6  # the step is 0.3
    if name in ("few_integers", "binary_sums"):
        tolerance = 0.1  # codebooks are integers of 8 bits, of several columns
    if name == "a projection of one's own" and value < 0:
        tolerance = 2.0  # not in the span of a few nonnegative steps
    error = (solution.factors.recompose() - weight).abs().amax()
    assert float(error) <= max(tolerance * abs(value), 2e-45)


@pytest.mark.parametrize("name", EXACT)
def test_rank_one_weights_are_exact(name: str) -> None:
    weight = torch.outer(torch.tensor([1.0, -2.0, 1.0, -2.0, 3.0, 1.0]), normal(5, 7))
    assert squared_error(weight, run(name, weight, 7)) <= 1e-9 * float((weight**2).sum())


@every_method
def test_one_weight_is_enough_for_what_needs_no_more(name: str) -> None:
    weight = torch.tensor([[-2.0]])
    if name in ("scalar", "ternary", "binary", "rate_aware"):
        recomposed = run(name, weight, 1).factors.recompose()
        # A trellis begins on the even numbers: steps of 0.8.
        assert float(recomposed) == pytest.approx(-2, abs=0.41 if name == "rate_aware" else 0.3)
    else:
        with pytest.raises(InputError, match="is too large for 1 tiles of 1 elements; use at most"):
            run(name, weight, 1)


def test_columns_that_no_tile_uses_are_left_out() -> None:
    weight = torch.zeros(6, 4)
    weight[0, 0] = 1
    factors = decompose(weight, methods.ternary(), tile=4).factors
    assert factors.codebook.shape == (4, 1)
    assert torch.equal(factors.recompose(), weight)


BAD_WEIGHTS = [
    (torch.tensor([[1.0, math.nan], [math.inf, 1.0]]), 1, "2 of the 4 elements .* NaN, infinite"),
    (torch.full((2, 2), 1e300, dtype=torch.float64), 1, "beyond the range of float32"),
    (torch.zeros(0, 3), 1, r"none that is empty, got shape \(0, 3\)"),
    (torch.tensor(1.0), 1, r"must have an axis .* got shape \(\)"),
    (torch.ones(4, 4, dtype=torch.int64), 1, "floating-point type, got torch.int64"),
    (torch.ones(4, 6), 0, "tile must be from 1 to 6, .* got 0"),
    (torch.ones(4, 2, 3), 7, r"tile must be from 1 to 6, .* \(4, 2, 3\); got 7"),
]


@pytest.mark.parametrize("weight, tile, message", BAD_WEIGHTS)
def test_bad_weights_are_refused(weight: Tensor, tile: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decompose(weight, methods.binary(), tile=tile)
    with pytest.raises(InputError, match=message):
        quantize_within(weight, 1000, tile=tile)


TOO_MUCH = [
    (methods.weight_svd(4), "rank 4 is too large for 10 tiles of 3 elements; use at most 3"),
    (methods.vector_quantization(11), "columns 11 is too large .* use at most 10"),
    (methods.additive_vector_quantization(11, 2), "columns 11 is too large .* use at most 10"),
    (methods.dictionary_learning(11, 2), "columns 11 is too large .* use at most 10"),
    (methods.projected_gradient(integers(), 11), "columns 11 is too large .* use at most 10"),
    (methods.scalar(1e-6), "step size 1e-06 is too small: .* use a step size of"),
    (methods.rate_aware(1e-6), "step size 1e-06 is too small: .* use a step size of"),
]


@pytest.mark.parametrize("method, message", TOO_MUCH)
def test_methods_that_ask_too_much_are_refused(method: Method, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decompose(normal(6, 10, 3), method, tile=3)


@pytest.mark.parametrize("make", [methods.scalar, methods.rate_aware])
def test_the_step_that_the_message_names_is_enough(make: Callable[[float], Method]) -> None:
    weight = normal(6, 10, 3)
    with pytest.raises(InputError, match="use a step size of") as caught:
        decompose(weight, make(1e-6), tile=3)
    step = float(str(caught.value).split("use a step size of ")[1].split()[0])
    assert decompose(weight, make(step), tile=3).factors.quantized


NONSENSE: list[tuple[Callable[[], Method], str]] = [
    (lambda: methods.weight_svd(0), "rank must be at least 1, got 0"),
    (lambda: methods.vector_quantization(-1), "columns must be at least 1, got -1"),
    (lambda: methods.vector_quantization(2, starts=0), "starts must be at least 1"),
    (lambda: methods.additive_vector_quantization(2, 3), "3 different ones need as many columns"),
    (lambda: methods.additive_vector_quantization(2, 0), "count must be at least 1"),
    (lambda: methods.dictionary_learning(2, 3), "3 nonzeros need as many columns, got 2"),
    (lambda: methods.scalar(0.0), "step_size must be positive and finite, got 0"),
    (lambda: methods.rate_aware(math.nan), "step_size must be positive and finite, got nan"),
]


@pytest.mark.parametrize("make, message", NONSENSE)
def test_nonsense_is_refused(make: Callable[[], Method], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# --- weight SVD ---------------------------------------------------------------------------------


def least_error(tiles: Tensor, rank: int) -> tuple[float, float]:
    """Squared error of the truncated SVD, and the energy."""
    values = torch.linalg.svdvals(tiles.double()) ** 2
    return float(values[rank:].sum()), float(values.sum())


def check_svd(weight: Tensor, tile: int, rank: int, seed: int) -> None:
    solution = decompose(weight, methods.weight_svd(rank), tile=tile, seed=seed)
    least, energy = least_error(Tiling(tuple(weight.shape), tile).split(weight), rank)
    assert least * (1 - 1e-6) <= objective(solution) <= least * (1 + 1e-4) + 1e-12 * energy


@given(
    seed=st.integers(0, 1000), rows=st.integers(2, 12), columns=st.integers(2, 12), data=st.data()
)
def test_svd_of_random_weights(seed: int, rows: int, columns: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(rows, columns)))
    check_svd(normal(seed, rows, columns), columns, rank, seed)


@pytest.mark.parametrize("decay", [0.0, 2.0, 5.0])
def test_svd_of_decaying_spectra(decay: float) -> None:
    spectrum = torch.logspace(0, -decay, 30)
    left, right = (torch.linalg.qr(normal(i, 30, 30)).Q for i in (1, 2))
    for rank in (1, 5, 29, 30):
        check_svd(left @ torch.diag(spectrum) @ right, 30, rank, seed=rank)


def test_svd_of_real_layers(layers: dict[str, Tensor]) -> None:
    for name, rank in itertools.product(("layer1.0.conv2.weight", "layer3.1.conv1.weight"), (1, 4)):
        check_svd(layers[name], 9, rank, seed=0)
    for rank in (8, 31, 32):
        check_svd(layers["layer2.2.conv2.weight"], 288, rank, seed=1)


# --- vector quantization ------------------------------------------------------------------------


def lloyd(tiles: Tensor, start: Tensor) -> KMeans:
    means = KMeans(
        start.shape[1], init=start.T.numpy(), n_init=1, algorithm="lloyd", tol=0, max_iter=300
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that fewer distinct clusters were found
        return means.fit(tiles.T.numpy())


def check_lloyd(weight: Tensor, tile: int, columns: int, far: int = 0) -> None:
    tiles = Tiling(tuple(weight.shape), tile).split(weight).double()
    start = initialize.spread_tiles(tiles, columns, torch.Generator().manual_seed(1))
    start[:, :far] = 10 * tiles.abs().amax() + torch.arange(far)
    expected = lloyd(tiles, start)
    unit = power_of_two(weight)

    def there(tiles: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        empty = tiles.new_zeros(columns, tiles.shape[1])
        return start / unit, nearest_column(Quadratic(start / unit, tiles), empty)

    method = replace(methods.vector_quantization(columns), start=there)
    solution = decompose(weight, method, tile=tile)
    assert objective(solution) == pytest.approx(expected.inertia_, rel=1e-9)
    assert len(solution.history) - 1 == expected.n_iter_
    if solution.factors.rank == columns:
        assert np.array_equal(solution.factors.latent.argmax(dim=0).numpy(), expected.labels_)


@given(seed=st.integers(0, 1000), columns=st.integers(1, 12))
def test_vector_quantization_is_lloyd(seed: int, columns: int) -> None:
    check_lloyd(normal(seed, 40, 6), 3, columns)


@pytest.mark.parametrize("far", [1, 3, 6])
def test_empty_clusters_move_as_in_scikit_learn(far: int) -> None:
    check_lloyd(normal(far, 60, 6), 3, 8, far)


def test_vector_quantization_of_real_layers_is_lloyd(layers: dict[str, Tensor]) -> None:
    for name, columns in (("layer1.1.conv1.weight", 16), ("layer3.0.conv1.weight", 48)):
        check_lloyd(layers[name], 9, columns)
        check_lloyd(layers[name], 9, columns, far=columns // 4)


def test_more_starts_are_never_worse() -> None:
    weight = normal(7, 50, 4)
    single, several = (
        decompose(weight, methods.vector_quantization(6, starts=n), tile=4) for n in (1, 5)
    )
    assert objective(several) <= objective(single)


def test_as_many_columns_as_tiles_are_exact() -> None:
    weight = normal(8, 9, 4)
    solution = decompose(weight, methods.vector_quantization(9), tile=4)
    assert squared_error(weight, solution) <= 1e-10


# --- additive vector quantization ---------------------------------------------------------------


def within(weight: Tensor, tile: int, nbytes: int) -> tuple[float, float]:
    """Error of the best additive quantization within so many bytes, and of the plain one."""
    n = Tiling(tuple(weight.shape), tile).count
    columns = max(k for k in range(n + 1) if plain_bytes(k, tile, n) <= nbytes)
    plain = decompose(weight, methods.vector_quantization(columns), tile=tile)
    return objective(quantize_within(weight, nbytes, tile=tile)), objective(plain)


def plain_bytes(columns: int, d: int, n: int) -> float:
    """Bytes of plain vector quantization: 16 bits per codebook element, an index per tile."""
    return (16 * columns * d + (math.ceil(n * math.log2(columns)) if columns else 0)) / 8


@pytest.mark.parametrize("bits", [0.3, 0.6, 1.0, 1.6])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "equal tiles"])
def test_additive_is_never_above_plain_in_the_same_bytes(kind: str, bits: float) -> None:
    weight = normal(9, 48, 36)
    if kind == "heavy tails":
        weight = weight**3
    elif kind == "equal tiles":
        weight = weight[torch.arange(48) % 7]
    additive, plain = within(weight, 6, int(weight.numel() * bits / 8))
    assert additive <= plain
    if kind == "normal" and bits >= 1:
        assert additive <= 0.9 * plain


@pytest.mark.parametrize("bits", [0.4, 0.8, 1.5])
@pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "layer2.1.conv1.weight"])
def test_additive_of_real_layers(layers: dict[str, Tensor], name: str, bits: float) -> None:
    additive, plain = within(layers[name], 9, int(layers[name].numel() * bits / 8))
    assert additive <= plain
    assert bits < 0.8 or additive <= 0.97 * plain


@given(seed=st.integers(0, 1000), count=st.integers(2, 4))
def test_additive_columns_have_so_many_ones(seed: int, count: int) -> None:
    method = methods.additive_vector_quantization(6, count)
    solution = decompose(normal(seed, 30, 4), method, tile=4)
    assert (solution.factors.latent.sum(dim=0) == count).all()
    assert ((solution.factors.latent == 0) | (solution.factors.latent == 1)).all()
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(solution.history))


def test_additive_bits_count_subsets_and_the_codebook() -> None:
    assert additive_bits(4, 2, 3, 10) == math.ceil(10 * math.log2(6)) + 16 * 4 * 3
    assert additive_bits(1, 1, 3, 10) == 16 * 3


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(BudgetError, match="a column of 4 elements takes 8"):
        quantize_within(normal(0, 10, 4), 7, tile=4)
    assert quantize_within(normal(0, 10, 4), 8, tile=4).factors.rank == 1


# --- dictionary learning ------------------------------------------------------------------------


def planted(d: int, columns: int, nonzeros: int, n: int) -> Tensor:
    """Tiles, as rows, made of few columns of a random dictionary, and noise."""
    dictionary = torch.nn.functional.normalize(normal(0, d, columns), dim=0)
    order = torch.rand(columns, n, generator=torch.Generator().manual_seed(1)).argsort(dim=0)
    latent = normal(2, columns, n) * (order < nonzeros)
    return (dictionary @ latent + 0.05 * normal(3, d, n)).T.contiguous()


def sklearn_error(rows: Tensor, columns: int, nonzeros: int, alpha: float) -> float:
    """Least squared error of scikit-learn's dictionaries, transformed by matching pursuit."""
    scale = rows.std()
    x = (rows / scale).double().numpy()
    options = {"transform_algorithm": "omp", "transform_n_nonzero_coefs": nonzeros}
    errors = []
    for kind, iterations in ((DictionaryLearning, 30), (MiniBatchDictionaryLearning, 60)):
        model = kind(columns, alpha=alpha, max_iter=iterations, random_state=0, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = model.fit(x).transform(x)
        assert ((code != 0).sum(axis=1) <= nonzeros).all()
        errors.append(((x - code @ model.components_) ** 2).sum())
    return float(scale**2 * min(errors))


# The alphas are the best for scikit-learn of 0.03, 0.1, 0.3, 1, 2.


@pytest.mark.slow
@pytest.mark.parametrize("d, columns, alpha", [(12, 12, 0.3), (9, 14, 0.3)])
def test_dictionary_of_planted_tiles(d: int, columns: int, alpha: float) -> None:
    rows = planted(d, columns, 2, 200)
    solution = decompose(rows, methods.dictionary_learning(columns, 2), tile=d)
    assert ((solution.factors.latent != 0).sum(dim=0) <= 2).all()
    assert objective(solution) <= sklearn_error(rows, columns, 2, alpha)
    if d == columns:
        assert objective(solution) <= 0.05**2 * rows.numel()  # the noise


@pytest.mark.slow
@pytest.mark.parametrize("columns, nonzeros, alpha", [(9, 2, 1.0), (16, 3, 0.3)])
def test_dictionary_of_a_real_layer(
    layers: dict[str, Tensor], columns: int, nonzeros: int, alpha: float
) -> None:
    rows = layers["layer3.1.conv1.weight"].reshape(-1, 9)[:200]
    solution = decompose(rows, methods.dictionary_learning(columns, nonzeros), tile=9)
    assert objective(solution) <= 0.97 * sklearn_error(rows, columns, nonzeros, alpha)


def test_sparse_pca_has_a_larger_error_with_more_nonzeros(layers: dict[str, Tensor]) -> None:
    rows = layers["layer3.1.conv1.weight"].reshape(-1, 9)[:200]
    scale = float(rows.std())
    tiles = (rows.T / scale).double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pca = SparsePCA(9, alpha=0.4, max_iter=100, random_state=0, method="cd").fit(tiles)
    latent = pca.components_
    error = ((tiles - tiles @ np.linalg.pinv(latent) @ latent) ** 2).sum()  # best codebook
    assert (latent != 0).sum() > 3 * 200
    solution = decompose(rows, methods.dictionary_learning(9, 3), tile=9)
    assert objective(solution) <= 0.8 * scale**2 * error


def test_all_columns_are_as_good_as_no_sparsity() -> None:
    weight = normal(10, 30, 5)
    solution = decompose(weight, methods.dictionary_learning(3, 3), tile=5)
    least, _ = least_error(weight, 3)
    assert objective(solution) == pytest.approx(least, rel=1e-2)


# --- scalar, ternary, binary --------------------------------------------------------------------


@given(
    seed=st.integers(0, 1000),
    step=st.floats(0.01, 3),
    shape=st.sampled_from([((7, 11), 3), ((5, 3, 3, 3), 9), ((6, 1), 1)]),
)
def test_scalar_is_rounding_bit_for_bit(
    seed: int, step: float, shape: tuple[tuple[int, ...], int]
) -> None:
    weight = normal(seed, *shape[0])
    weight.view(-1)[0] = 1.5 * step  # a tie, perhaps
    factors = decompose(weight, methods.scalar(step), tile=shape[1]).factors
    rounded = torch.round(weight / step)
    product = factors.codebook.float() @ factors.latent.float()
    assert torch.equal(factors.tiling.join(product), rounded)
    assert torch.equal(factors.recompose(), rounded * torch.tensor(step, dtype=torch.float32))


def test_scalar_of_a_real_layer(layers: dict[str, Tensor]) -> None:
    weight = layers["layer2.1.conv2.weight"]
    step = 0.37 * float(weight.std())
    factors = decompose(weight, methods.scalar(step), tile=9).factors
    assert torch.equal(factors.recompose(), torch.round(weight / step) * step)


def least_ternary_error(weight: Tensor) -> float:
    """Least over all thresholds, each with its best step."""
    magnitudes = weight.abs().double().flatten()
    errors = [float((magnitudes**2).sum())]
    for threshold in magnitudes:
        above = magnitudes >= threshold
        step = magnitudes[above].mean()
        errors.append(float(((magnitudes - step * above) ** 2).sum()))
    return min(errors)


@given(seed=st.integers(0, 1000), power=st.integers(1, 3))
def test_ternary_is_the_optimum(seed: int, power: int) -> None:
    weight = normal(seed, 7, 11) ** power
    solution = decompose(weight, methods.ternary(), tile=4)
    assert squared_error(weight, solution) == pytest.approx(least_ternary_error(weight), rel=1e-5)
    assert solution.factors.latent.abs().amax() == 1


@given(seed=st.integers(0, 1000))
def test_binary_is_the_optimum(seed: int) -> None:
    weight = normal(seed, 7, 11)
    solution = decompose(weight, methods.binary(), tile=4)
    steps = torch.linspace(0, 3, 3001, dtype=torch.float64)
    errors = ((weight.abs().double().flatten()[:, None] - steps) ** 2).sum(dim=0)
    least = float(errors.amin())
    assert least * (1 - 1e-5) <= squared_error(weight, solution) * (1 - 1e-9) + 1e-9
    assert squared_error(weight, solution) <= least * (1 + 1e-5)
    assert torch.equal(solution.factors.recompose().sign(), weight.sign())


def test_ternary_and_binary_of_a_real_layer(layers: dict[str, Tensor]) -> None:
    weight = layers["layer1.0.conv1.weight"]
    solution = decompose(weight, methods.ternary(), tile=9)
    assert squared_error(weight, solution) == pytest.approx(least_ternary_error(weight), rel=1e-5)
    binary = decompose(weight, methods.binary(), tile=9)
    magnitudes = weight.abs().double()
    expected = float(((magnitudes - magnitudes.mean()) ** 2).sum())
    assert squared_error(weight, binary) == pytest.approx(expected, rel=1e-5)


# --- rate-aware, and sets of one's own ----------------------------------------------------------


@pytest.mark.parametrize("shape, tile", SHAPES)
def test_rate_aware_is_the_default_factorization(shape: tuple[int, ...], tile: int) -> None:
    weight = normal(11, *shape)
    expected = factorize_weight(weight, tile, 0.4)
    factors = decompose(weight, methods.rate_aware(0.4, rows=shape[0]), tile=tile).factors
    assert torch.equal(factors.codebook, expected.codebook)
    assert torch.equal(factors.latent, expected.latent)
    assert factors.scale == expected.scale


@pytest.mark.parametrize(
    "project, member",
    [
        (keep_largest(2), lambda z: (z != 0).sum(dim=0) <= 2),
        (grid(0.25, 3), lambda z: (z * 4).frac() == 0),
        (lambda y: y.clamp(-0.5, 0.5), lambda z: z.abs() <= 0.5),
    ],
    ids=["sparse", "grid", "box"],
)
def test_any_set(project: Callable[[Tensor], Tensor], member: Callable[[Tensor], Tensor]) -> None:
    weight = normal(12, 40, 6)
    solution = decompose(weight, methods.projected_gradient(project, 5, starts=3), tile=6)
    assert member(solution.factors.latent).all()
    assert objective(solution) < 0.8 * float((weight**2).sum())
    assert objective(solution) <= solution.history[0]


def test_a_method_of_ones_own() -> None:
    method = replace(methods.weight_svd(2), iterations=1, starts=1)
    solution = decompose(normal(13, 9, 7), method, tile=7)
    assert (len(solution.history), solution.status) == (2, "iteration limit")
