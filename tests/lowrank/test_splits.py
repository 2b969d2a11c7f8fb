# SPDX-License-Identifier: Apache-2.0
"""Split weights: exact at full rank, best under the metric, and layers that compute the same."""

import copy

import pytest
import torch
from torch import nn

from tersor.lowrank.forms import FORMS
from tersor.lowrank.layers import as_kernel, groups_of, replacement

LAYERS = [
    nn.Linear(20, 30),
    nn.Linear(30, 20, bias=False),
    nn.Conv2d(8, 12, 3, stride=2, padding=1),
    nn.Conv2d(8, 12, (3, 5), padding="same", padding_mode="reflect"),
    nn.Conv2d(8, 12, 3, padding=(2, 0), dilation=(2, 1), stride=(1, 2)),
    nn.Conv1d(8, 10, 5, dilation=2),
    nn.Conv2d(16, 8, 1, stride=2),
    nn.Conv2d(8, 8, 3, groups=8, padding=1, stride=(1, 2)),
]
CASES = [
    pytest.param(layer, name, id=f"{name}-{number}")
    for number, layer in enumerate(LAYERS)
    for name, form in FORMS.items()
    if form.suits(tuple(as_kernel(layer.weight).shape), groups_of(layer))
]


def inputs_of(layer, seed=0):
    draw = torch.Generator().manual_seed(seed)
    if isinstance(layer, nn.Linear):
        return torch.randn(2, 3, layer.in_features, generator=draw)
    sizes = (13, 14)[: len(layer.kernel_size)]
    return torch.randn(2, layer.in_channels, *sizes, generator=draw)


def metric_of(size):
    draw = torch.Generator().manual_seed(size)
    x = torch.randn(3 * size, size, generator=draw, dtype=torch.float64)
    x *= torch.linspace(0.1, 3, size, dtype=torch.float64)
    return x.T @ x / len(x)


def error(weight, composed, metric):
    rows = (composed - weight).flatten(1)
    return float(((rows @ metric) * rows).sum())


@pytest.mark.parametrize("layer, name", CASES)
@pytest.mark.parametrize("part", [1, 2])
def test_layers_compute_with_the_composed_weight(layer, name, part):
    weight, form = as_kernel(layer.weight), FORMS[name]
    ranks = tuple(max(1, rank // part) for rank in form.most(tuple(weight.shape)))
    kernels = form.split(weight, None)(ranks)
    made = replacement(layer, name, kernels, ranks)
    assert type(made) is nn.Sequential and {type(m) for m in made} == {type(layer)}
    twin = copy.deepcopy(layer)
    twin.weight.data = form.composed(kernels).float().view_as(layer.weight)
    x = inputs_of(layer)
    torch.testing.assert_close(made(x), twin(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("layer, name", CASES)
def test_full_ranks_are_exact(layer, name, metric):
    weight, form = as_kernel(layer.weight), FORMS[name]
    if name == "depthwise":
        column, row = torch.randn(8, 1, 3, 1).double(), torch.randn(8, 1, 1, 3).double()
        weight = column * row
    given = metric_of(weight[0].numel()) if metric else None
    kernels = form.split(weight, given)(form.most(tuple(weight.shape)))
    torch.testing.assert_close(form.composed(kernels), weight)


@pytest.mark.parametrize("layer, name", [c for c in CASES if "depthwise" not in c.id])
def test_the_metric_counts(layer, name):
    """A split for the metric has a smaller error under it than one without, and near optimum."""
    weight, form = as_kernel(layer.weight), FORMS[name]
    metric = metric_of(weight[0].numel())
    ranks = tuple(max(1, rank // 2) for rank in form.most(tuple(weight.shape)))
    aware, plain = (form.composed(form.split(weight, m)(ranks)) for m in (metric, None))
    assert error(weight, aware, metric) < error(weight, plain, metric)


def test_outputs_are_the_best_of_their_rank():
    """Eckart, Young and Mirsky under the metric: the error is the tail of the singular values."""
    weight, metric = torch.randn(12, 8, 3, 3, dtype=torch.float64), metric_of(72)
    kernels = FORMS["outputs"].split(weight, metric)((5,))
    tail = torch.linalg.svdvals(weight.flatten(1) @ torch.linalg.cholesky(metric))[5:]
    found = error(weight, FORMS["outputs"].composed(kernels), metric)
    assert found == pytest.approx(float((tail**2).sum()))
