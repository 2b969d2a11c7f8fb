# SPDX-License-Identifier: Apache-2.0
"""A dense matrix in the order of the kernels: products, threads, states, what cannot be."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tersor import kernels
from tersor.errors import InputError
from tersor.factors import Factors
from tersor.kernels.panels import Panels
from tersor.nn import insert_factors
from tersor.nn.frozen import PanelWeight
from tersor.nn.owner import attach, forget


def factors_of(rows, inputs, seed=0):
    draw = torch.Generator().manual_seed(seed)
    latent = torch.randint(-3, 4, (8, rows * -(-inputs // 8)), generator=draw, dtype=torch.int16)
    codebook = torch.randint(-20, 21, (8, 8), generator=draw, dtype=torch.int16)
    return Factors(codebook, latent, 2e-3, (rows, inputs))


def packed_linear(rows=40, inputs=24):
    torch.manual_seed(0)
    module, factors = nn.Linear(inputs, rows), factors_of(rows, inputs)
    insert_factors(module, {"weight": factors})
    forget(module, "weight")
    attach(module, "weight", PanelWeight(factors, torch.float32))
    return module, factors.recompose()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70),
    st.integers(1, 90),
    st.sampled_from([0, 1, 2, 5, 6, 7, 13, 96, 97, 200]),
    st.integers(1, 4),
    st.booleans(),
)
def test_output_is_that_of_the_dense_matrix(rows, inputs, batch, threads, with_bias):
    draw = torch.Generator().manual_seed(rows)
    matrix, x = (torch.randn(n, inputs, generator=draw) for n in (rows, batch))
    bias = torch.randn(rows, generator=draw) if with_bias else None
    packed = Panels.pack(matrix)
    assert torch.equal(packed.recompose(), matrix)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    got = kernels.linear(x, packed, bias)
    torch.set_num_threads(1)
    alone = kernels.linear(x, packed, bias)
    torch.set_num_threads(before)
    assert torch.equal(got, alone) or not kernels.instructions()
    wanted = F.linear(x.double(), matrix.double(), None if bias is None else bias.double())
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)


def test_the_weight_is_held_once_and_read_as_it_was():
    module, weight = packed_linear()
    assert module.weight_factors.nbytes == 48 * 24 * 4  # 40 rows are three panels of 16
    assert torch.equal(module.weight, weight)
    with pytest.raises(InputError, match="factors of this weight are gone"):
        module.weight_factors.to_factors()


def test_copies_and_states():
    module, weight = packed_linear()
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        expected = module(x)
        torch.testing.assert_close(expected, F.linear(x, weight, module.bias))
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
            other.weight_factors.panels.zero_()
            assert torch.equal(module(x), expected)
            other.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)
            assert torch.equal(other(x), expected)
    for dtype in (torch.float64, torch.bfloat16):
        got = copy.deepcopy(module).to(dtype)(x.to(dtype))
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)
    state = {name: part.double() for name, part in module.state_dict().items()}
    with pytest.raises(InputError, match="packed tensor"):
        module.load_state_dict(state, assign=True)


def test_operator_is_well_formed():
    packed = Panels.pack(torch.randn(20, 12))
    for grad in (True, False):
        x, bias = torch.randn(3, 12, requires_grad=grad), torch.randn(20, requires_grad=grad)
        torch.library.opcheck(
            torch.ops.tersor.linear.default,
            (x, list(packed.tensors), bias, packed.name, list(packed.layout)),
        )


def test_gradients_are_those_of_the_dense_matrix():
    module, weight = packed_linear()
    x, grad = torch.randn(3, 24, requires_grad=True), torch.randn(3, 40)
    got = torch.autograd.grad(module(x), (x, module.bias), grad)
    expected = torch.autograd.grad(F.linear(x, weight, module.bias), (x, module.bias), grad)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_compile_and_export():
    model = nn.Sequential(packed_linear()[0], nn.ReLU()).eval()
    model.requires_grad_(False)
    x = torch.randn(3, 24)
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), expected)


def test_bad_input():
    module, _ = packed_linear()
    with pytest.raises(InputError, match="real numbers, 24 in the last axis"):
        module(torch.randn(3, 23))
    packed = Panels.pack(torch.randn(20, 12))
    with pytest.raises(InputError, match="packed tensor 'panels' is"):
        short = Panels.of([packed.tensors.panels[:1]], packed.layout)
        kernels.linear(torch.randn(3, 12), short, None)
