# SPDX-License-Identifier: Apache-2.0
"""The error of outputs, on samples held out."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import tersor
from tersor.calibration.output_error import share


class Returning(nn.Module):
    """Returns something made of what it gets."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> object:
        return self.make(x)


X = torch.randn(50, 8)


def error(make, other, batches=(X,)):
    return tersor.output_error(Returning(make), Returning(other), batches)


def test_the_squared_error_as_a_share_of_the_energy():
    assert error(lambda x: 1.03 * x, lambda x: x) == pytest.approx(0.03**2, rel=1e-4)
    assert error(lambda x: x, lambda x: x) == 0
    found = error(lambda x: (x, {"y": [1.1 * x]}), lambda x: (x, {"y": [x]}), [X, X[:7]])
    assert found == pytest.approx(0.1**2 / 2, rel=1e-4)
    assert error(lambda x: {"loss": x.sum() * 0, "y": x}, lambda x: {"loss": x.sum(), "y": x}) == 0


def test_it_is_that_of_a_compressed_model_in_evaluation_mode():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 64)).train()
    model = copy.deepcopy(dense)
    tersor.compress(model, ratio=6)
    found = tersor.output_error(model, dense, X.split(25))
    assert dense.training and model.training
    with torch.no_grad():
        wanted, now = ([m.eval()(x) for x in X.split(25)] for m in (dense, model))
    shares = [(b - a).square().sum() / a.square().sum() for a, b in zip(wanted, now, strict=True)]
    assert found == pytest.approx(float(sum(shares) / 2), rel=1e-4) and 0 < found < 1


@pytest.mark.parametrize(
    "found, wanted, value",
    [
        ([1.0, -math.inf], [1.0, -math.inf], 0.0),
        ([1.1, -math.inf], [1.0, -math.inf], 0.01),
        ([1.0, 0.0], [1.0, -math.inf], 1.0),
        ([1.0, math.nan], [1.0, 2.0], 1.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.1, 0.0], [0.0, 0.0], 1.0),
    ],
)
def test_outputs_that_are_not_finite_or_zero(found, wanted, value):
    assert share(torch.tensor(found), torch.tensor(wanted)) == pytest.approx(value)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(tersor.InputError, match="no floating-point tensors"):
        error(lambda x: x.argmax(1), lambda x: x.argmax(1))
    with pytest.raises(tersor.InputError, match="outputs of different shapes"):
        error(lambda x: x[:, 1:], lambda x: x)
    with pytest.raises(tersor.InputError, match="the loader is empty"):
        error(lambda x: x, lambda x: x, [])


@pytest.mark.parametrize(
    "sizes, used, held",
    [
        ([4] * 17, 15, 8),
        ([4] * 8, 7, 4),
        ([16] * 4, 4, 8),
        ([16], 1, 2),
        ([2], 1, 1),
        ([3, 1], 1, 1),
        ([1], 1, 0),
        ([], 0, 0),
    ],
)
def test_about_an_eighth_of_the_samples_is_held_out(sizes, used, held):
    batches = list(torch.arange(sum(sizes)).split(sizes)) if sizes else []
    found, others = tersor.held_out(batches)
    assert (len(found), sum(map(len, others))) == (used, held)
    everything = torch.cat([*found, *others]).sort()[0] if sizes else torch.arange(0)
    assert torch.equal(everything, torch.arange(sum(sizes)))
    again = tersor.held_out(batches)
    pairs = zip([*found, *others], [*again[0], *again[1]], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_nested_batches_are_divided_and_others_held_out_whole():
    batch = {"x": X, "more": OrderedDict(y=(X, torch.tensor(3)))}
    (used,), (held,) = tersor.held_out([batch])
    assert torch.equal(used["x"], X[:44]) and torch.equal(held["more"]["y"][0], X[44:])
    assert held["more"]["y"][1] == 3 and len(batch["x"]) == 50
    packed = pack_sequence([torch.randn(3, 8), torch.randn(2, 8)])
    for odd in ((X, X[:3]), (packed, None)):
        assert tersor.held_out([odd]) == ([odd], [])
        assert tersor.held_out([X, odd]) == ([X], [odd])
