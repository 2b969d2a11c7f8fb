# SPDX-License-Identifier: Apache-2.0
"""Calls of models that go on side by side."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from tersor.nn.lockstep import DivergedError, lockstep


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def test_all_calls_stop_before_each_module_with_its_input():
    models, batches = (network(), network()), [torch.randn(2, 4), torch.randn(3, 4)]
    with torch.no_grad():
        models[1][0].weight.zero_()
    calls = [lambda model, x=x: model(x) for x in batches]
    stops = list(lockstep(models, ["0", "2"], calls))
    assert [stop.name for stop in stops] == ["0", "2"]
    for model, inputs in zip(models, stops[1].inputs, strict=True):
        for x, batch in zip(inputs, batches, strict=True):
            assert torch.equal(x, model[:2](batch)) and not x.requires_grad


def test_what_is_changed_at_a_stop_counts_from_there_on():
    model, x, seen = network(), torch.randn(2, 4), []
    calls = [lambda model: seen.append(model(x))]
    for stop in lockstep((model,), ["0", "2"], calls):
        if stop.name == "2":
            model[2].weight.data.zero_()
    assert torch.equal(seen[0], model[2].bias.expand(2, 3))


def test_errors_of_a_call_are_raised_and_threads_end():
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(lockstep((network(),), ["0"], [lambda model: model(torch.randn(2, 7))]))
    assert threading.active_count() == before


def test_who_stops_looking_leaves_no_threads_or_hooks():
    before, model = threading.active_count(), network().train()
    stops = lockstep((model,), ["0", "2"], [lambda model: model(torch.randn(2, 4))] * 3)
    next(stops)
    assert not model.training
    stops.close()
    assert threading.active_count() == before and model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_models_that_part_ways_are_told():
    class Other(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](x[:, :1].expand(-1, 5))

    other = Other(*network())
    with pytest.raises(DivergedError):
        list(lockstep((network(), other), ["0", "2"], [lambda model: model(torch.randn(2, 4))]))
