"""Look-up kernels against the product in plain PyTorch, within the bounds of their rounding."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tersor.errors import InputError
from tersor.factorization import methods
from tersor.factorization.decompose import decompose
from tersor.factors import Factors
from tersor.kernels import lookup
from tersor.kernels.lookup import FEW, Packed, linear, pack, reference

native = pytest.mark.skipif(lookup._lookup is None, reason="built without the native module")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_factors(
    shape: tuple[int, int], tile: int, seed: int, *, signs: bool, rank: int = 16, nonzeros: int = 2
) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    n = shape[0] * -(-shape[1] // tile)
    codebook = torch.randint(-127, 128, (tile, rank), generator=draw)
    if signs:
        latent = torch.randint(0, 2, (rank, n), generator=draw) * 2 - 1
    else:
        kept = torch.rand(rank, n, generator=draw).topk(min(nonzeros, rank), dim=0).indices
        values = torch.randint(-7, 8, (rank, n), generator=draw)
        latent = torch.zeros_like(values).scatter(0, kept, values.gather(0, kept))
    return Factors(codebook.to(torch.int16), latent.to(torch.int16), 2.0**-10, shape)


@st.composite
def products(draw: st.DrawFn) -> tuple[Factors, Tensor]:
    shape = draw(st.integers(1, 70)), draw(st.integers(1, 300))
    tile = draw(st.integers(1, min(20, shape[1])))
    signs = draw(st.booleans())
    rank = draw(st.integers(1, 64 if signs else 16))
    factors = random_factors(
        shape, tile, draw(st.integers(0, 99)), signs=signs, rank=rank,
        nonzeros=draw(st.integers(1, 8)),
    )  # fmt: skip
    batch = draw(st.integers(0, 40))
    return factors, normal(draw(st.integers(0, 99)), batch, shape[1])


def bound(x: Tensor, packed: Packed) -> Tensor:
    """What rounding to the tables' grids can change, (batch, rows).

    The largest entry of a table becomes 127 in the one kernel, 4095 in the other, which first
    rounds the numbers that entries are made of so that the largest sum of them is 32767.
    """
    rows, inputs = packed.shape
    tile, columns = packed.codebook.shape
    blocks = packed.codes.shape[1]
    padded = torch.nn.functional.pad(x, (0, blocks * tile - inputs))
    u = (padded.reshape(len(x), blocks, tile) @ packed.codebook).abs()
    few = len(x) <= FEW
    if packed.signs:
        together = 4 if few else 8
        largest = u.unfold(2, together, together).sum(dim=3).flatten(1).amax(dim=1)
        steps = 0.5 / 127 if few else 0.5 / 4095 + 8 * 0.51 / 32763
        return (largest * steps * blocks * columns / together)[:, None].expand(-1, rows)
    largest, latent = u.flatten(1).amax(dim=1), packed.latent().flatten(0, 1)[:rows]
    magnitudes, number = latent.abs().sum(dim=(1, 2)), (latent != 0).sum(dim=(1, 2))
    if few:
        return largest[:, None] * magnitudes * 0.5 / 127
    return largest[:, None] * (number * 7 * 0.5 / 4095 + magnitudes * 0.51 / 32767)


def assert_right(x: Tensor, packed: Packed) -> None:
    y, expected = linear(x, packed), x.double() @ packed.recompose().double().T
    assert y.shape == (x.shape[0], packed.shape[0])
    assert y.dtype == torch.float32
    slack = 1e-5 * x.abs().sum(dim=1, keepdim=True) * packed.recompose().abs().amax()
    assert ((y - expected).abs() <= bound(x, packed) + slack).all()


@given(product=products())
def test_the_product_is_right(product: tuple[Factors, Tensor]) -> None:
    factors, x = product
    packed = pack(factors)
    assert torch.equal(packed.recompose(), factors.recompose())
    assert_right(x, packed)


@pytest.mark.parametrize("method", [methods.few_integers(), methods.sign_sums()])
@pytest.mark.parametrize("batch, most", [(1, 0.01), (4, 0.01), (8, 0.001), (40, 0.001)])
def test_the_documented_error(method: methods.Method, batch: int, most: float) -> None:
    factors = decompose(normal(0, 64, 512), method, tile=8).factors
    x, packed = normal(1, batch, 512), pack(factors)
    expected = reference(x, packed)
    assert (linear(x, packed) - expected).norm() <= most * expected.norm()


@native
@given(product=products())
def test_packing_without_the_native_module(product: tuple[Factors, Tensor]) -> None:
    factors, x = product
    packed = pack(factors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "_lookup", None)
        assert torch.equal(pack(factors).codes, packed.codes)
        assert torch.equal(linear(x, packed), reference(x, packed))


@pytest.fixture
def instruction_sets() -> Iterator[list[str]]:
    in_use = lookup._lookup.in_use()
    yield [name for name in ("avx512", "avx2", "portable") if lookup._lookup.use(name)]
    lookup._lookup.use(in_use)


@native
@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 16, 19])
def test_all_instruction_sets_give_the_same(
    signs: bool, batch: int, instruction_sets: list[str]
) -> None:
    packed, x = pack(random_factors((75, 131), 7, 3, signs=signs)), normal(4, batch, 131)
    results = []
    for name in instruction_sets:
        lookup._lookup.use(name)
        results.append(linear(x, packed))
    assert all(torch.equal(result, results[0]) for result in results)


@native
def test_an_unknown_instruction_set_is_not_used() -> None:
    in_use = lookup._lookup.in_use()
    assert not lookup._lookup.use("none such")
    assert lookup._lookup.in_use() == in_use


LARGE = (2080, 512)
"""So many codes that they are worth two threads."""


@pytest.mark.parametrize("signs", [False, True])
def test_the_number_of_threads_changes_nothing(signs: bool) -> None:
    factors, threads = random_factors(LARGE, 8, 5, signs=signs), torch.get_num_threads()
    results = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            packed = pack(factors)
            results.append((packed.codes, *(linear(normal(6, b, 512), packed) for b in (2, 20))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("signs", [False, True])
def test_callers_side_by_side(signs: bool) -> None:
    packed = pack(random_factors((100, 64), 8, 7, signs=signs))
    inputs = [normal(seed, 1 + seed % 20, 64) for seed in range(40)]
    expected = [linear(x, packed) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: linear(x, packed), inputs))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("batch", [3, 18])
def test_misaligned_and_strided_memory(signs: bool, batch: int) -> None:
    packed, x = pack(random_factors((45, 50), 8, 8, signs=signs)), normal(9, batch, 50)
    expected = linear(x, packed)
    codes = torch.empty(packed.codes.numel() + 1, dtype=torch.uint8)[1:].view(packed.codes.shape)
    codebook = torch.empty(packed.codebook.numel() + 1)[1:].view(packed.codebook.shape)
    moved = replace(packed, codes=codes.copy_(packed.codes), codebook=codebook)
    moved.codebook.copy_(packed.codebook)
    offset = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    assert torch.equal(linear(offset, moved), expected)
    assert torch.equal(linear(x.T.contiguous().T, packed), expected)
    assert torch.equal(linear(x.repeat(1, 2)[:, :50], packed), expected)
    assert torch.equal(linear(x.repeat_interleave(2, dim=0)[::2], packed), expected)
    assert_right(x[:1].expand(batch, -1), packed)


@native
@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("batch", [3, 18])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_item(signs: bool, batch: int, value: float) -> None:
    packed, x = pack(random_factors((45, 50), 8, 10, signs=signs)), normal(11, batch, 50)
    expected = linear(x, packed)
    x[1, 20] = value
    y = linear(x, packed)
    assert y[1].isnan().all()
    others = torch.arange(batch) != 1
    assert torch.equal(y[others], expected[others])


@native
@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("batch", [2, 9])
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-30, 1e30])
def test_any_magnitude(signs: bool, batch: int, scale: float) -> None:
    packed, x = pack(random_factors((33, 40), 8, 12, signs=signs)), normal(13, batch, 40)
    assert linear(x * scale, packed).isfinite().all()
    if scale in (0.0, 1e-38):
        assert (linear(x * scale, packed) == 0).all()
    else:
        torch.testing.assert_close(linear(x * scale, packed) / scale, linear(x, packed))


def test_a_weight_of_zeros() -> None:
    zero = decompose(torch.zeros(5, 24), methods.few_integers(), tile=8).factors
    assert torch.equal(linear(normal(14, 2, 24), pack(zero)), torch.zeros(2, 5))


@pytest.mark.parametrize(
    "factors",
    [
        random_factors((4, 24), 8, 0, signs=False, rank=16, nonzeros=9),
        random_factors((4, 24), 8, 0, signs=False, rank=17),
        random_factors((4, 24), 8, 0, signs=True, rank=65),
        Factors(torch.eye(8).short(), 8 * torch.ones(8, 12).short(), 1.0, (4, 24)),
        Factors(torch.ones(8, 2), torch.ones(2, 12).short(), 1.0, (4, 24)),
        Factors(torch.ones(9, 2).short(), torch.ones(2, 8).short(), 1.0, (4, 2, 3, 3)),
    ],
    ids=["nonzeros", "columns", "signs", "magnitude", "real", "convolution"],
)
def test_other_factors_are_refused(factors: Factors) -> None:
    with pytest.raises(InputError, match=r"cannot be looked up.*few_integers or"):
        pack(factors)


@pytest.mark.parametrize("x", [torch.zeros(2, 7), torch.zeros(2, 24).double(), torch.zeros(24)])
def test_inputs_that_do_not_fit_are_refused(x: Tensor) -> None:
    packed = pack(random_factors((4, 24), 8, 0, signs=True))
    with pytest.raises(InputError, match=r"\(batch, 24\) and type float32 are needed"):
        linear(x, packed)
