# SPDX-License-Identifier: Apache-2.0
"""The product with a packed matrix: native kernels against the reference, operator, bad input."""

import os
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tersor import kernels
from tersor.errors import InputError
from tersor.factors import Factors
from tersor.kernels.integers import Integers
from tersor.kernels.product import reference

FEW_ERROR, MANY_ERROR = 0.01, 0.001
MANY = Integers.many


@pytest.fixture(autouse=True)
def seed():
    """Inputs do not depend on which tests ran before."""
    torch.manual_seed(0)


def rounding(factors, u):
    """Most that all rows can be off when the inputs u of the latent are rounded to 8 bits."""
    latent = factors.latent.reshape(factors.rank, factors.shape[0], -1).float()
    return float(latent.abs().sum((0, 2)).norm() * u.abs().max()) / 253


def random_factors(rows, inputs, tile=1, rank=1, spread=1.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    tiles = -(-inputs // tile)
    latent = torch.randn(rank, rows * tiles, generator=draw) * spread
    # Positions of a tile differ, so that some take 2 bits and others 4.
    latent *= torch.linspace(1, 0.2, rank)[:, None]
    codebook = torch.randint(-20, 21, (tile, rank), generator=draw, dtype=torch.int16)
    codebook[0] |= 1
    return Factors(codebook, latent.round().to(torch.int16), 0.01, (rows, inputs))


def packed_linear(factors, x, bias=None):
    return kernels.linear(x, Integers.pack(factors), bias)


def relative_error(got, expected):
    return float((got - expected).norm() / expected.norm().clamp_min(1e-30))


shapes = st.tuples(
    st.integers(1, 70),
    st.integers(1, 300),
    st.integers(1, 40),
    st.sampled_from([0.1, 0.4, 1, 3, 8, 20, 60]),
    st.integers(0, 99),
)


def drawn(shape):
    rows, inputs, tile, spread, seed = shape
    tile = min(tile, inputs)
    return random_factors(rows, inputs, tile, max(1, tile - seed % 3), spread, seed)


@settings(deadline=None, max_examples=60)
@given(shapes, st.lists(st.tuples(st.integers(0, 10**6), st.integers(-4000, 4000)), max_size=5))
def test_packing_is_exact(shape, outliers):
    factors = drawn(shape)
    for place, value in outliers:
        factors.latent.view(-1)[place % factors.latent.numel()] = value
    matrix = Integers.pack(factors)
    matrix.check()
    latent = matrix.latent()
    pairs = [
        sorted(torch.cat([codebook, z.T]).T.tolist())
        for codebook, z in (
            (matrix.tensors.codebook[:, : factors.rank], latent),
            (factors.codebook, factors.latent),
        )
    ]
    assert pairs[0] == pairs[1]
    assert torch.equal(matrix.recompose(), factors.recompose())


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 4))
def test_rows_are_bit_for_bit_those_of_the_dense_matrix(shape, threads):
    factors = drawn(shape)
    matrix = Integers.pack(factors)
    index = torch.randint(0, factors.shape[0], (40,), generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    got = kernels.rows(index, matrix)
    torch.set_num_threads(before)
    assert torch.equal(got, factors.recompose()[index])


@settings(deadline=None, max_examples=100)
@given(shapes, st.integers(1, 20), st.booleans())
def test_output_is_that_of_the_dense_matrix(shape, batch, with_bias):
    factors = drawn(shape)
    rows, inputs = factors.shape
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(batch, inputs, generator=draw)
    bias = torch.randn(rows, generator=draw) if with_bias else None
    # Errors are those of the transformed input: relative to what the sums are made of.
    layout = Integers.pack(factors).layout
    latent = factors.latent.reshape(factors.rank, rows, -1).float()
    tiles = F.pad(x, (0, factors.tiling.padding)).reshape(batch, -1, layout.tile)
    u = tiles @ factors.codebook.float() * factors.scale
    size = (latent.norm() / rows**0.5) * u.flatten(1).norm() / u[0].numel() ** 0.5 * rows**0.5
    got = packed_linear(factors, x, bias)
    limit = (FEW_ERROR if batch < MANY else MANY_ERROR * 2) if kernels.instructions() else 1e-5
    if batch < MANY and u.numel() <= 1000:  # few errors may all add up
        size, limit = 1.0, rounding(factors, u) * batch**0.5
    assert got.shape == (batch, rows)
    assert float((got - F.linear(x, factors.recompose(), bias)).norm()) <= limit * size + 1e-4


@pytest.mark.parametrize("batch, limit", [(1, FEW_ERROR), (5, FEW_ERROR), (16, MANY_ERROR)])
@pytest.mark.parametrize("spread", [0.35, 2.0, 9.0, 40.0])
def test_error_is_as_documented(batch, limit, spread):
    factors = random_factors(256, 512, 16, 16, spread)
    x = torch.randn(batch, 512, generator=torch.Generator().manual_seed(0))
    assert relative_error(packed_linear(factors, x), F.linear(x, factors.recompose())) < limit


def test_positions_of_all_widths_and_escapes_occur():
    matrix = Integers.pack(random_factors(64, 256, 16, 16, 3.0))
    packed, layout = matrix.tensors, matrix.layout
    assert layout.wide and layout.narrow and not layout.middle and len(packed.escapes)
    factors = random_factors(64, 256, 16, 16, 30.0)
    factors.latent[-4:] //= 9
    matrix = Integers.pack(factors)
    packed, layout = matrix.tensors, matrix.layout
    assert 0 < layout.top < layout.middle < layout.wide and layout.narrow and len(packed.escapes)


@pytest.mark.parametrize("batch", [3, 230])
def test_wide_integers_are_multiplied_by_what_is_not_rounded(batch):
    factors, x = random_factors(100, 200, 16, 16, 20.0), torch.randn(batch, 200)
    got, expected = packed_linear(factors, x), F.linear(x, factors.recompose())
    assert Integers.pack(factors).layout.middle and relative_error(got, expected) < 1e-5


def test_integers_of_eight_bits_take_a_quarter_of_the_dense_weight():
    matrix = Integers.pack(random_factors(640, 640, 64, 64, 20.0))
    assert sum(part.nbytes for part in matrix.tensors) < 640 * 640


@pytest.mark.parametrize("largest", [8, 100, 4000])
def test_large_integers_are_escapes(largest):
    factors = random_factors(20, 1000)
    factors.latent[0, 7::50] = largest
    factors.latent[0, 9::50] = -largest
    x = torch.randn(3, 1000)
    u = x * factors.codebook.float() * factors.scale
    difference = packed_linear(factors, x) - F.linear(x, factors.recompose())
    # Large integers at the same places in all rows: errors that do not average out.
    assert float(difference.norm()) < 0.5 * rounding(factors, u) * len(x) ** 0.5
    assert float(difference.norm()) < 2 * FEW_ERROR * float(F.linear(x, factors.recompose()).norm())


def test_what_cannot_be_packed():
    assert Integers.packable(random_factors(4, 8))
    real = random_factors(4, 8)
    assert not Integers.packable(Factors(real.codebook.float(), real.latent.float(), 1.0, (4, 8)))
    real.latent[0, 0] = 4001
    assert not Integers.packable(real)


def test_zeros():
    factors = random_factors(20, 64, spread=0.0)
    assert not packed_linear(factors, torch.randn(3, 64)).any()
    x = torch.zeros(12, 64)
    assert not packed_linear(random_factors(20, 64), x).any()


@pytest.mark.parametrize("batch", [1, MANY])
def test_extreme_inputs_of_the_kernels(batch):
    """All rows and inputs at the ends of their range: sums of 16 bits must not overflow."""
    factors = random_factors(16, 4096)
    for value in (7, -8, 2, -1, 39, -24, 167, -88):
        factors.latent[:] = value
        for x in [scale * torch.ones(batch, 4096) for scale in (1, -1e30, 1e-20)]:
            expected = F.linear(x.double(), factors.recompose().double())
            assert relative_error(packed_linear(factors, x).double(), expected) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_data_types(dtype):
    factors, x = random_factors(24, 64, 8, 8), torch.randn(9, 64).to(dtype)
    got = packed_linear(factors, x, torch.ones(24, dtype=dtype))
    assert got.dtype == dtype
    expected = F.linear(x.float(), factors.recompose(), torch.ones(24))
    assert relative_error(got.float(), expected) < 0.01


@pytest.mark.parametrize("shape", [(64,), (0, 64), (2, 0, 64), (1, 2, 3, 64), (5, 3, 64)])
def test_leading_axes(shape):
    factors, x = random_factors(24, 64, 8, 8), torch.randn(shape)
    got = packed_linear(factors, x)
    assert got.shape == (*shape[:-1], 24)
    assert torch.equal(got.reshape(-1, 24), packed_linear(factors, x.reshape(-1, 64)))


def test_strides_and_misaligned_memory():
    factors = random_factors(24, 64, 8, 8)
    matrix = Integers.pack(factors)
    storage = torch.randn(64 * 10 + 1)
    for x in (
        storage[1:].reshape(10, 64),
        storage[:-1].reshape(64, 10).T,
        storage[:64].expand(10, 64),
    ):
        expected = kernels.linear(x.clone().contiguous(), matrix, None)
        assert torch.equal(kernels.linear(x, matrix, None), expected)


@pytest.mark.parametrize("batch", [1, 6, 40, 250])
@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_same_result_for_any_number_of_threads(batch, spread):
    factors, x = random_factors(1030, 512, spread=spread), torch.randn(batch, 512)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(packed_linear(factors, x))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_several_threads_at_once():
    matrix = Integers.pack(random_factors(100, 128, 8, 8))
    inputs = [torch.randn(1 + 5 * i, 128) for i in range(6)]
    expected = [kernels.linear(x, matrix, None) for x in inputs]
    wrong = []

    def work(i):
        for _ in range(20):
            if not torch.equal(kernels.linear(inputs[i], matrix, None), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_after_use():
    matrix = Integers.pack(random_factors(1030, 512))
    x = torch.randn(16, 512)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = kernels.linear(x, matrix, None)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(kernels.linear(x, matrix, None), expected) else 1)
    torch.set_num_threads(before)
    assert os.waitpid(child, 0)[1] == 0


def test_operator_is_well_formed():
    factors = random_factors(24, 64, 8, 8)
    matrix = Integers.pack(factors)
    for batch, grad in ((1, True), (9, True), (3, False)):
        x, bias = torch.randn(batch, 64, requires_grad=grad), torch.randn(24, requires_grad=grad)
        torch.library.opcheck(
            torch.ops.tersor.linear.default,
            (x, list(matrix.tensors), bias, matrix.name, list(matrix.layout)),
        )


def test_rows_are_those_of_the_dense_matrix():
    factors = random_factors(50, 64, 8, 8, 3.0)
    matrix = Integers.pack(factors)
    index = torch.tensor([49, 3, 3, 0, 17])
    torch.testing.assert_close(
        kernels.rows(index, matrix), factors.recompose()[index], rtol=1e-4, atol=1e-4
    )
    assert kernels.rows(index[:0], matrix).shape == (0, 64)
    torch.library.opcheck(
        torch.ops.tersor.rows.default,
        (index, list(matrix.tensors), matrix.name, list(matrix.layout)),
    )
    for wrong in (-1, 50, 60):
        with pytest.raises(IndexError):
            kernels.rows(torch.tensor([0, wrong]), matrix)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("batch", [1, MANY])
@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_what_is_not_finite_is_not_hidden(batch, value, spread):
    x = torch.randn(batch, 128)
    x[0, 77] = value
    got = packed_linear(random_factors(20, 128, spread=spread), x)
    assert not got[0].isfinite().any() and got[1:].isfinite().all()


def test_gradients_are_those_of_the_dense_matrix():
    factors = random_factors(24, 64, 8, 8)
    x, bias = torch.randn(5, 64, requires_grad=True), torch.randn(24, requires_grad=True)
    grad = torch.randn(5, 24)
    got = torch.autograd.grad(packed_linear(factors, x, bias), (x, bias), grad)
    expected = torch.autograd.grad(F.linear(x, factors.recompose(), bias), (x, bias), grad)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_reference_runs_without_native_kernels(monkeypatch):
    monkeypatch.setattr("tersor.kernels.cpu._kernels", None)
    factors, x = random_factors(24, 64, 8, 8, 2.0), torch.randn(3, 64)
    assert kernels.instructions() == ""
    expected = F.linear(x, factors.recompose(), torch.ones(24))
    torch.testing.assert_close(
        packed_linear(factors, x, torch.ones(24)), expected, rtol=1e-4, atol=1e-4
    )
    index = torch.tensor([23, 0, 23])
    got = kernels.rows(index, Integers.pack(factors))
    assert torch.equal(got, factors.recompose()[index])
    with pytest.raises(IndexError):
        kernels.rows(index + 1, Integers.pack(factors))


def test_gpus_without_kernels_are_told(monkeypatch):
    gpu = torch.device("cuda", 0)
    why = kernels.missing_on.__wrapped__  # not what was found before
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "for NVIDIA GPUs" in why(gpu)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 8.0" in why(gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "tersor.kernels.gpu", None)
    assert "pip install 'tersor[gpu]'" in why(gpu)
    monkeypatch.setitem(sys.modules, "tersor.kernels.gpu", kernels)
    assert why(gpu) == ""


def test_a_matrix_elsewhere_is_refused():
    matrix = Integers.pack(random_factors(24, 64, 8, 8))
    elsewhere = Integers.of([part.to("meta") for part in matrix.tensors], matrix.layout)
    with pytest.raises(InputError, match="is on meta and the input on cpu; move one"):
        kernels.known(elsewhere)


def test_bad_input():
    matrix = Integers.pack(random_factors(24, 64, 8, 8))
    for x in (torch.randn(3, 63), torch.tensor(1.0), torch.ones(3, 64, dtype=torch.int64)):
        with pytest.raises(InputError, match="real numbers, 64 in the last axis"):
            kernels.linear(x, matrix, None)
    with pytest.raises(InputError, match="bias has shape"):
        kernels.linear(torch.randn(3, 64), matrix, torch.ones(23))
    with pytest.raises(InputError, match="'codes' is"):
        short = matrix.tensors._replace(codes=matrix.tensors.codes[:1])
        kernels.linear(torch.randn(3, 64), Integers(short, matrix.layout), None)


def test_reference_is_the_dense_product():
    factors, linear = random_factors(24, 64, 8, 8), nn.Linear(64, 24)
    linear.weight.data = factors.recompose()
    matrix = Integers.pack(factors)
    x = torch.randn(3, 64)
    torch.testing.assert_close(reference(x, matrix, linear.bias), linear(x), rtol=1e-4, atol=1e-4)
