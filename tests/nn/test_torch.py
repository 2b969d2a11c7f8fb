# SPDX-License-Identifier: Apache-2.0
"""Factored models under export, compile, fx, functional calls and distributed training."""

import copy
import shutil

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from toys import CASES, TOKENS, SameConv, TiedModel, output, pair
from versions import export_is_old

from tersor.errors import InputError
from tersor.nn import insert_factors

every_case = pytest.mark.parametrize("make, inputs", CASES.values(), ids=CASES.keys())


@export_is_old
@every_case
def test_export(make, inputs):
    _, factored, factors = pair(make)
    program = torch.export.export(factored, inputs)
    kept = [n for n in program.graph.nodes if n.target is torch.ops.tersor.recompose.default]
    assert len(kept) >= len(factors)
    torch.testing.assert_close(output(program.module(), inputs), output(factored, inputs))


@pytest.mark.parametrize("case", ["linear", "conv2d, own forward", "tied", "attention", "lstm"])
def test_compile(case):
    make, inputs = CASES[case]
    _, factored, _ = pair(make)
    expected = output(factored, inputs)
    expected.square().sum().backward()
    grads = [parameter.grad for parameter in factored.parameters()]
    factored.zero_grad()
    torch._dynamo.reset()
    graph_breaks = isinstance(factored, nn.RNNBase)  # torch does not compile these
    compiled = torch.compile(factored, backend="aot_eager", fullgraph=not graph_breaks)
    result = output(compiled, inputs)
    result.square().sum().backward()
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close([parameter.grad for parameter in factored.parameters()], grads)


@export_is_old
def test_exported_file(tmp_path):
    make, inputs = CASES["transformer"]
    _, factored, _ = pair(make)
    torch.export.save(torch.export.export(factored, inputs), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(*inputs), factored(*inputs))


def test_export_of_any_batch_size():
    _, factored, _ = pair(lambda: SameConv(3, 4, 3))
    shapes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(factored, (torch.randn(2, 3, 5, 5),), dynamic_shapes=shapes)
    x = torch.randn(7, 3, 5, 5)
    torch.testing.assert_close(program.module()(x), factored(x))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
def test_compile_with_inductor():
    _, factored, _ = pair(lambda: nn.Linear(20, 6))
    x = torch.randn(4, 20)
    torch._dynamo.reset()
    with torch.no_grad():  # backward is tested above, without the cost of compiling C++
        torch.testing.assert_close(torch.compile(factored)(x), factored(x))


def test_fx_keeps_library_layers_whole():
    _, factored, _ = pair(lambda: nn.Sequential(nn.Linear(20, 6), nn.ReLU()))
    traced = torch.fx.symbolic_trace(factored)
    assert [node.op for node in traced.graph.nodes][1:3] == ["call_module", "call_module"]
    x = torch.randn(4, 20)
    traced(x).sum().backward()
    assert factored[0].weight_factors.codebook.grad.any()


def test_functional_call_replaces_factors():
    _, factored, _ = pair(TiedModel)
    parameters = {name: p * 2 for name, p in factored.named_parameters()}
    other = copy.deepcopy(factored)
    other.load_state_dict(parameters, strict=False)
    result = torch.func.functional_call(factored, parameters, (TOKENS,))
    torch.testing.assert_close(result, other(TOKENS))


def models():
    cases = (CASES["tied"], CASES["lstm"], CASES["conv2d, grouped"])
    return [(pair(make)[1], torch.cat([inputs[0]] * 2)[:4]) for make, inputs in cases]


def train_on_part(rank, file):
    """Each of two processes computes half the batch; gradients must be those of the full batch."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for model, batch in models():
        alone = copy.deepcopy(model)
        output(alone, (batch,)).square().mean().backward()
        parallel = DistributedDataParallel(model)
        output(parallel, (batch.chunk(2)[rank],)).square().mean().backward()
        for got, expected in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-6)
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")
def test_distributed_data_parallel(tmp_path):
    multiprocessing.spawn(train_on_part, (str(tmp_path / "store"),), nprocs=2)


def test_factors_cannot_be_inserted_below_a_wrapper(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        wrapped = DistributedDataParallel(nn.Linear(20, 6))
        with pytest.raises(InputError, match="DistributedDataParallel"):
            insert_factors(wrapped, {})
    finally:
        distributed.destroy_process_group()
