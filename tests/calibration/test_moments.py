# SPDX-License-Identifier: Apache-2.0
"""Second moments against products that are computed in another way."""

from __future__ import annotations

import itertools

import pytest
import torch
from samples import generator
from torch import Tensor, nn

from tersor.calibration import moments
from tersor.calibration.moments import Moment, joint_moments, mean_vector


def measured(layer: nn.Module, *inputs: Tensor, groups: int = 1) -> Tensor:
    moment = Moment(groups, layer.weight[0].numel())
    with torch.no_grad():
        for x in inputs:
            moment.add(layer, x)
    return moment.mean()


def expected(layer: nn.Module, x: Tensor) -> Tensor:
    """(groups, m, m) from the layer itself: with a weight of single ones its outputs are the
    elements of the vectors that it multiplies.
    """
    groups = getattr(layer, "groups", 1)
    shape = layer.weight.shape[1:]
    inputs = shape.numel()
    ones = torch.eye(inputs).reshape(inputs, *shape).repeat(groups, *[1] * len(shape))
    layer.weight, layer.bias = nn.Parameter(ones.double()), None
    with torch.no_grad():
        y = layer(x.double())
    if isinstance(layer, nn.Linear):
        y = y.reshape(-1, inputs)[None]
    else:
        y = y.movedim(1, 0).reshape(groups, inputs, -1).mT
    return (y.mT @ y / y.shape[1]).float()


@pytest.mark.parametrize("shape", [(50, 7), (5, 10, 7), (7,)])
def test_linear(shape):
    x = torch.randn(shape, generator=generator())
    layer = nn.Linear(7, 3)
    torch.testing.assert_close(measured(layer, x), expected(layer, x)[0])


CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3, padding=1, stride=2),
    nn.Conv1d(4, 6, 4, padding="same", dilation=3),
    nn.Conv1d(4, 6, 2, padding="valid"),
    nn.Conv2d(4, 6, (3, 2), padding=(2, 1), stride=(2, 1), dilation=(1, 2)),
    nn.Conv2d(4, 6, 3, padding=1, groups=2),
    nn.Conv2d(4, 8, 3, padding=2, groups=4, dilation=2, stride=2),
    nn.Conv2d(4, 6, (2, 3), padding="same"),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="circular", stride=2),
    nn.Conv2d(4, 6, 4, padding="same", padding_mode="replicate"),
    nn.Conv3d(4, 4, (1, 2, 3), padding=(0, 1, 2), groups=2, stride=(1, 2, 1)),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_convolutions(layer, monkeypatch):
    monkeypatch.setattr(moments, "_SAMPLED", 1000)
    axes = len(layer.kernel_size)
    x = torch.randn(3, 4, *(11, 9, 8)[:axes], generator=generator())
    found = measured(layer, x, groups=layer.groups)
    wanted = expected(layer, x)
    torch.testing.assert_close(found.reshape(wanted.shape), wanted)
    torch.testing.assert_close(measured(layer, x), wanted.mean(0))


def test_padding_that_was_changed_later():
    layer = nn.Conv2d(2, 3, 3, padding=1)
    layer.padding = (0, 2)
    x = torch.randn(2, 2, 6, 6, generator=generator())
    torch.testing.assert_close(measured(layer, x), expected(layer, x)[0])


def test_one_sample_without_an_axis_for_it():
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(2, 6, 6, generator=generator())
    torch.testing.assert_close(measured(layer, x), measured(layer, x[None]))


@pytest.mark.parametrize("layer", [nn.Linear(9, 4), nn.Conv2d(9, 9, 3, padding=1, groups=3)])
def test_blocks_of_any_size_and_any_batches_give_the_same(layer, monkeypatch):
    x = torch.randn(4, 9, 9, 9, generator=generator())
    whole = measured(layer, x, groups=getattr(layer, "groups", 1))
    sizes = []
    for block in (1, 100, 2000):
        monkeypatch.setattr(moments, "_BLOCK", block)
        with torch.no_grad():
            vectors, positions = moments.input_vectors(layer, x)
            sizes.append(max(b.numel() for b in moments._blocks(vectors, positions)))
        parts = measured(layer, *x.split([1, 3]), groups=getattr(layer, "groups", 1))
        torch.testing.assert_close(parts, whole)
    row = layer.weight[0].numel() * getattr(layer, "groups", 1)
    assert all(s <= max(b, row) for s, b in zip(sizes, (1, 100, 2000), strict=True))


def test_of_many_positions_of_a_sample_some_count():
    layer, x = nn.Conv2d(1, 2, 1), torch.randn(3, 1, 20, 9, generator=generator())
    moment = Moment(1, 1)
    moment.add(layer, x)
    some = x[:, :, ::4]
    assert moment.rows == some.numel() < 3 * 64
    torch.testing.assert_close(moment.mean().view(()), some.square().mean())


def test_vectors_are_a_view():
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(1, 2, 50, 50, generator=generator())
    vectors, _ = moments.input_vectors(layer, x)
    assert vectors.untyped_storage().nbytes() == x.nbytes < vectors.numel() * 4 / 8


def test_16_bits_are_summed_in_32():
    x = (torch.randn(3000, 5, generator=generator()) + 3).bfloat16()
    layer = nn.Linear(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = measured(layer, *x.split(1000))
    assert found.dtype == torch.float32
    # Sums in 16 bits would be wrong in the third digit.
    torch.testing.assert_close(found, expected(layer, x)[0], rtol=1e-4, atol=1e-4)


def test_empty_inputs_count_nothing():
    layers = (nn.Linear(3, 4), torch.zeros(0, 3)), (nn.Conv1d(3, 4, 2), torch.zeros(0, 3, 5))
    for (layer, x), times in itertools.product(layers, (1, 2)):
        moment = Moment(1, layer.weight[0].numel())
        for _ in range(times):
            moment.add(layer, x)
        assert moment.rows == 0


@pytest.mark.parametrize("shifted", [False, True])
def test_joint_moments_of_two_models(shifted):
    draw, layer = generator(), nn.Conv2d(2, 3, 1)
    first, second = ([torch.randn(4, 2, 3, 5, generator=draw) for _ in range(2)] for _ in "xy")
    shifts = (torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])) if shifted else None
    found = joint_moments(layer, first, second, shifts)
    x, y = (torch.cat(part).movedim(1, -1).reshape(-1, 2) for part in (first, second))
    if shifts is not None:
        x, y = x - shifts[0], y - shifts[1]
    assert found.rows == len(x) == 2 * 4 * 15
    torch.testing.assert_close(found.own[0], x.mT @ x / len(x))
    torch.testing.assert_close(found.crossed[0], y.mT @ x / len(x))


@pytest.mark.parametrize("most, every", [(96, (1, 1)), (95, (2, 1)), (24, (2, 2)), (1, (4, 2))])
def test_of_many_positions_some_count_and_all_samples(monkeypatch, most, every):
    """Neighbours in an image are alike; axes of fewer than 4 positions stay whole."""
    monkeypatch.setattr(moments, "_ROWS", most)
    monkeypatch.setattr(moments, "_ROWS_PER_INPUT", 0)
    x = torch.randn(2, 1, 8, 6, generator=generator())
    some = x[:, :, :: every[0], :: every[1]]
    found = joint_moments(nn.Conv2d(1, 1, 1), [x], [x])
    assert found.rows == some.numel()
    torch.testing.assert_close(found.own.view(()), some.square().mean())
    torch.testing.assert_close(mean_vector(nn.Conv2d(1, 1, 1), [x]).view(()), x.mean())
