# SPDX-License-Identifier: Apache-2.0
"""Look-up kernels against the product in plain PyTorch, within the bounds of their rounding."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tersor import kernels
from tersor.errors import InputError
from tersor.factorization import methods
from tersor.factorization.decompose import decompose
from tersor.factors import Factors
from tersor.kernels.lookup import Lookup

native = pytest.mark.skipif(not kernels.instructions(), reason="no native kernels here")

MANY = Lookup.many


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_factors(
    shape: tuple[int, int], tile: int, seed: int, *, binary: bool, rank: int = 16, nonzeros: int = 2
) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    n = shape[0] * -(-shape[1] // tile)
    codebook = torch.randint(-127, 128, (tile, rank), generator=draw)
    if binary:
        latent = torch.randint(0, 2, (rank, n), generator=draw) * 2 - 1
    else:
        kept = torch.rand(rank, n, generator=draw).topk(min(nonzeros, rank), dim=0).indices
        values = torch.randint(-7, 8, (rank, n), generator=draw)
        latent = torch.zeros_like(values).scatter(0, kept, values.gather(0, kept))
    return Factors(codebook.to(torch.int16), latent.to(torch.int16), 2.0**-10, shape)


def packed(*args: object, **kwargs: object) -> Lookup:
    return Lookup.pack(random_factors(*args, **kwargs))  # type: ignore[arg-type]


def linear(x: Tensor, matrix: Lookup, bias: Tensor | None = None) -> Tensor:
    return kernels.linear(x, matrix, bias)


@st.composite
def products(draw: st.DrawFn) -> tuple[Factors, Tensor]:
    shape = draw(st.integers(1, 70)), draw(st.integers(1, 300))
    tile = draw(st.integers(1, min(20, shape[1])))
    binary = draw(st.booleans())
    rank = draw(st.integers(1, 64 if binary else 16))
    factors = random_factors(
        shape, tile, draw(st.integers(0, 99)), binary=binary, rank=rank,
        nonzeros=draw(st.integers(1, 8)),
    )  # fmt: skip
    batch = draw(st.integers(0, 40))
    return factors, normal(draw(st.integers(0, 99)), batch, shape[1])


def bound(x: Tensor, matrix: Lookup) -> Tensor:
    """What rounding to the tables' grids can change, (batch, rows).

    The largest entry of a table becomes 127 in the one kernel, 4095 in the other. Numbers that
    entries are made of are rounded first: the largest sum of those of a group of tiles is 32767.
    """
    given, layout = matrix.tensors, matrix.layout
    padded = F.pad(x, (0, layout.tiles * layout.tile - layout.inputs))
    u = (padded.reshape(len(x), layout.tiles, layout.tile) @ given.codebook).abs()
    few = len(x) < MANY
    if layout.binary:
        if few:  # sums of four are in 128ths first
            sums, number, steps = u.unfold(2, 4, 4).sum(dim=3), layout.columns // 4, 0.516 / 127
        else:
            group = 4 // layout.pairs
            sums = (
                F.pad(u, (0, 0, 0, -layout.tiles % group)).unflatten(1, (-1, group)).sum(dim=(2, 3))
            )
            number, steps = layout.columns, 0.51 / 32735
        largest = sums.flatten(1).amax(dim=1)
        return (largest * steps * number * layout.tiles)[:, None].expand(-1, layout.rows)
    latent = matrix.latent().reshape(layout.columns, layout.rows, -1).float()
    largest = u.flatten(1).amax(dim=1)
    magnitudes, number = latent.abs().sum(dim=(0, 2)), (latent != 0).sum(dim=(0, 2))
    if few:
        return largest[:, None] * magnitudes * 0.5 / 127
    return largest[:, None] * (number * 7 * 0.5 / 4095 + magnitudes * 0.51 / 32767)


def assert_right(x: Tensor, matrix: Lookup) -> None:
    weight = matrix.recompose()
    y, expected = linear(x, matrix), x.double() @ weight.double().T
    assert y.shape == (x.shape[0], weight.shape[0])
    assert y.dtype == torch.float32
    slack = 1e-5 * x.abs().sum(dim=1, keepdim=True) * weight.abs().amax()
    assert ((y - expected).abs() <= bound(x, matrix) + slack).all()


@native
def test_many_rows_take_other_tables_for_the_same_sums() -> None:
    matrix, x = packed((1600, 203), 8, 0, binary=True), normal(1, 21, 203)
    codebook, codes = matrix.tensors
    few = Lookup.of([codebook, codes[:2]], matrix.layout._replace(rows=64))
    assert torch.equal(linear(x, matrix)[:, :64], linear(x, few))
    assert_right(x, matrix)


@native
@pytest.mark.parametrize("batch", [1, 16])
def test_rounding_does_not_add_up(batch: int) -> None:
    matrix, x = packed((256, 4096), 8, 0, binary=True), normal(0, batch, 4096)
    error = linear(x, matrix) - x @ matrix.recompose().T
    assert (error.mean(dim=1).abs() < 0.3 * error.std(dim=1)).all()


@given(product=products())
def test_the_product_is_right(product: tuple[Factors, Tensor]) -> None:
    factors, x = product
    matrix = Lookup.pack(factors)
    matrix.check()
    assert torch.equal(matrix.latent()[: factors.rank], factors.latent)
    assert torch.equal(matrix.recompose(), factors.recompose())
    assert_right(x, matrix)


@pytest.mark.parametrize("method", [methods.few_integers(), methods.binary_sums()])
@pytest.mark.parametrize("batch, most", [(1, 0.01), (4, 0.01), (8, 0.001), (40, 0.001)])
def test_the_documented_error(method: methods.Method, batch: int, most: float) -> None:
    factors = decompose(normal(0, 64, 512), method, tile=8).factors
    assert Lookup.packable(factors)
    x, matrix = normal(1, batch, 512), Lookup.pack(factors)
    expected = F.linear(x, factors.recompose())
    assert (linear(x, matrix) - expected).norm() <= most * expected.norm()


@native
def test_few_vectors_are_rounded_more() -> None:
    """So that bounds of both kernels are tested, not of one only."""
    matrix, x = packed((64, 512), 8, 0, binary=True), normal(1, MANY, 512)
    exact = F.linear(x, matrix.recompose())[: MANY - 1]
    few, many = linear(x[:-1], matrix), linear(x, matrix)[:-1]
    assert (few - exact).norm() > 4 * (many - exact).norm() > 0


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 5, 33])
def test_bias(binary: bool, batch: int) -> None:
    matrix, x = packed((75, 131), 7, 3, binary=binary), normal(4, batch, 131)
    bias = normal(5, 75)
    torch.testing.assert_close(linear(x, matrix, bias), linear(x, matrix) + bias)


@pytest.mark.parametrize("binary", [False, True])
def test_without_native_kernels(binary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.kernels.cpu._kernels", None)
    factors, x = random_factors((75, 131), 7, 3, binary=binary), normal(4, 3, 131)
    assert torch.equal(linear(x, Lookup.pack(factors)), F.linear(x, factors.recompose()))


@pytest.mark.parametrize("binary", [False, True])
def test_the_number_of_threads_changes_nothing(binary: bool) -> None:
    # So many codes that they are worth two threads.
    matrix, threads = packed((2080, 512), 4, 5, binary=binary), torch.get_num_threads()
    results = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append([linear(normal(6, b, 512), matrix) for b in (2, 20)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("binary", [False, True])
def test_callers_side_by_side(binary: bool) -> None:
    matrix = packed((100, 64), 8, 7, binary=binary)
    inputs = [normal(seed, 1 + seed % 20, 64) for seed in range(40)]
    expected = [linear(x, matrix) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: linear(x, matrix), inputs))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("batch", [3, 18])
def test_misaligned_and_strided_memory(binary: bool, batch: int) -> None:
    matrix, x = packed((45, 50), 8, 8, binary=binary), normal(9, batch, 50)
    codebook, codes = matrix.tensors
    expected = linear(x, matrix)
    moved = Lookup.Tensors(
        torch.empty(codebook.numel() + 1)[1:].view(codebook.shape).copy_(codebook),
        torch.empty(codes.numel() + 1, dtype=torch.uint8)[1:].view(codes.shape).copy_(codes),
    )
    offset = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    assert torch.equal(linear(offset, Lookup(moved, matrix.layout)), expected)
    assert torch.equal(linear(x.T.contiguous().T, matrix), expected)
    assert torch.equal(linear(x.repeat(1, 2)[:, :50], matrix), expected)
    assert torch.equal(linear(x.repeat_interleave(2, dim=0)[::2], matrix), expected)
    assert_right(x[:1].expand(batch, -1), matrix)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("shape", [(50,), (0, 50), (2, 0, 50), (1, 2, 3, 50), (5, 3, 50)])
def test_leading_axes(binary: bool, shape: tuple[int, ...]) -> None:
    matrix, x = packed((45, 50), 8, 8, binary=binary), normal(1, *shape)
    y = linear(x, matrix)
    assert y.shape == (*shape[:-1], 45)
    assert torch.equal(y.reshape(-1, 45), linear(x.reshape(-1, 50), matrix))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_data_types(binary: bool, dtype: torch.dtype) -> None:
    matrix, x = packed((45, 50), 8, 8, binary=binary), normal(9, 9, 50).to(dtype)
    y = linear(x, matrix)
    assert y.dtype == dtype
    expected = F.linear(x.float(), matrix.recompose())
    assert (y.float() - expected).norm() <= 0.01 * expected.norm()


@native
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("batch", [3, 18])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_item(binary: bool, batch: int, value: float) -> None:
    matrix, x = packed((45, 50), 8, 10, binary=binary), normal(11, batch, 50)
    expected = linear(x, matrix)
    x[1, 20] = value
    y = linear(x, matrix)
    assert y[1].isnan().all()
    others = torch.arange(batch) != 1
    assert torch.equal(y[others], expected[others])


@native
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("batch", [2, 9])
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-30, 1e30])
def test_any_magnitude(binary: bool, batch: int, scale: float) -> None:
    matrix, x = packed((33, 40), 8, 12, binary=binary), normal(13, batch, 40)
    assert linear(x * scale, matrix).isfinite().all()
    if scale in (0.0, 1e-38):
        assert (linear(x * scale, matrix) == 0).all()
    else:
        torch.testing.assert_close(linear(x * scale, matrix) / scale, linear(x, matrix))


def test_a_weight_of_zeros() -> None:
    zero = decompose(torch.zeros(5, 24), methods.few_integers(), tile=8).factors
    assert torch.equal(linear(normal(14, 2, 24), Lookup.pack(zero)), torch.zeros(2, 5))
    assert not Lookup.packable(zero)


@pytest.mark.parametrize("binary", [False, True])
def test_the_operator_is_well_formed(binary: bool) -> None:
    matrix = packed((24, 50), 8, 8, binary=binary)
    given = list(matrix.tensors), matrix.name, list(matrix.layout)
    for batch, grad in ((1, True), (9, True), (3, False)):
        x = torch.randn(batch, 50, requires_grad=grad)
        bias = torch.randn(24, requires_grad=grad)
        torch.library.opcheck(torch.ops.tersor.linear.default, (x, given[0], bias, *given[1:]))
    index = torch.tensor([23, 3, 3, 0])
    torch.library.opcheck(torch.ops.tersor.rows.default, (index, *given))
    assert torch.equal(kernels.rows(index, matrix), matrix.recompose()[index])
    for wrong in (-1, 24, 31, 32):
        with pytest.raises(IndexError):
            kernels.rows(torch.tensor([0, wrong]), matrix)


@pytest.mark.parametrize("binary", [False, True])
def test_gradients_are_those_of_the_dense_matrix(binary: bool) -> None:
    matrix = packed((24, 50), 8, 8, binary=binary)
    x, bias = normal(1, 5, 50).requires_grad_(), normal(2, 24).requires_grad_()
    grad = normal(3, 5, 24)
    got = torch.autograd.grad(linear(x, matrix, bias), (x, bias), grad)
    expected = torch.autograd.grad(F.linear(x, matrix.recompose(), bias), (x, bias), grad)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "factors",
    [
        random_factors((4, 24), 8, 0, binary=False, rank=16, nonzeros=9),
        random_factors((4, 24), 8, 0, binary=False, rank=17),
        random_factors((4, 24), 8, 0, binary=True, rank=65),
        Factors(torch.eye(8).short(), 8 * torch.ones(8, 12).short(), 1.0, (4, 24)),
        Factors(torch.ones(8, 2), torch.ones(2, 12).short(), 1.0, (4, 24)),
        Factors(torch.ones(9, 2).short(), torch.ones(2, 8).short(), 1.0, (4, 2, 3, 3)),
    ],
    ids=["nonzeros", "columns", "binary", "magnitude", "real", "convolution"],
)
def test_other_factors_are_refused(factors: Factors) -> None:
    assert not Lookup.packable(factors)
    with pytest.raises(InputError, match=r"cannot be looked up.*few_integers or"):
        Lookup.pack(factors)


def test_what_integers_of_2_bits_do_in_fewer_bytes_is_not_for_look_ups() -> None:
    assert Lookup.packable(random_factors((4, 24), 8, 0, binary=False, nonzeros=4))
    assert not Lookup.packable(random_factors((4, 24), 8, 0, binary=False, nonzeros=5))
    assert not Lookup.packable(random_factors((4, 24), 8, 0, binary=True, rank=7))


def test_what_does_not_fit_is_refused() -> None:
    matrix = packed((4, 24), 8, 0, binary=True)
    given, layout = matrix.tensors, matrix.layout
    for x in (torch.zeros(2, 7), torch.zeros(2, 24).long(), torch.tensor(1.0)):
        with pytest.raises(InputError, match="real numbers, 24 in the last axis"):
            linear(x, matrix)
    x = torch.zeros(2, 24)
    with pytest.raises(InputError, match="'codes' is"):
        linear(x, Lookup(given._replace(codes=given.codes[:, :2]), layout))
    with pytest.raises(InputError, match="of no packed matrix"):
        linear(x, Lookup(given, layout._replace(pairs=5)))
    with pytest.raises(InputError, match="3 packed tensors"):
        torch.ops.tersor.linear(x, [*given, given.codes], None, "lookup", list(layout))
    with pytest.raises(InputError, match="of 'other' are of no packed"):
        torch.ops.tersor.linear(x, list(given), None, "other", list(layout))
