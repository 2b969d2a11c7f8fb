# SPDX-License-Identifier: Apache-2.0
"""Which weights matter, by backward passes."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.calibration.calibrate import Calibration
from tersor.calibration.gradients import squared_changes
from tersor.calibration.importance import importances


class Tower(nn.Module):
    """Layers of which the later ones damp the errors of the earlier ones, and a tied matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 32)
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        h = h + self.second(torch.tanh(self.first(h)))
        return self.head(self.norm(h))


def called(batch: Tensor, model: nn.Module) -> Tensor:
    return model(batch)


def white(name: str, gradient: Tensor) -> float:
    return float(gradient.square().mean())


def tower() -> tuple[Tower, list[Tensor]]:
    torch.manual_seed(0)
    return Tower().eval(), [torch.randint(50, (16, 12)) for _ in range(4)]


@pytest.mark.parametrize("name", ["first.weight", "second.weight", "tokens.weight"])
def test_importance_is_the_error_that_noise_causes(name):
    dense, batches = tower()
    weights, calls = {name: dense.get_parameter(name)}, [partial(called, b) for b in batches]
    found = squared_changes(dense, weights, white, calls)
    assert found is not None
    shares = []
    for seed in range(8):
        changed, generator = copy.deepcopy(dense), torch.Generator().manual_seed(seed)
        weight = changed.get_parameter(name)
        error = 0.003 * torch.randn(weight.shape, generator=generator)
        with torch.no_grad():
            weight += error
            for batch in batches:
                wanted = dense(batch)
                share = (changed(batch) - wanted).square().sum() / wanted.square().sum()
                shares.append(float(share / error.square().sum()))
    assert found[name] == pytest.approx(sum(shares) / len(shares), rel=0.15)


def test_errors_of_logits_count_as_they_change_probabilities():
    class Classifier(nn.Module):
        """One matrix moves all logits alike, which changes no probability."""

        def __init__(self) -> None:
            super().__init__()
            self.shift, self.classes = nn.Linear(32, 1, bias=False), nn.Linear(32, 40, bias=False)
            self.name = "scores"

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {self.name: self.classes(x) + self.shift(x)}

    torch.manual_seed(0)
    model, x = Classifier(), torch.randn(256, 32)
    weights = {name: p for name, p in model.named_parameters()}

    def ratio() -> float:
        found = squared_changes(model, weights, white, [partial(called, x)] * 4)
        assert found is not None
        return found["shift.weight"] / found["classes.weight"]

    assert ratio() == pytest.approx(40, rel=0.5)
    model.name = "logits"
    assert ratio() < 1e-6


def test_weights_before_a_step_are_tried_with_noise():
    class Steps(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](torch.sign(self[0](x)))

    torch.manual_seed(0)
    model, x = Steps(nn.Linear(32, 32), nn.Linear(32, 32)), torch.randn(300, 32)
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    found, idle = importances(
        model, weights, Calibration({}, 1, {}), [partial(called, x)], lambda *_: None
    )
    assert not idle
    assert found["0.weight"] > 0.01 * found["1.weight"]


def test_models_without_derivative_are_tried_with_noise():
    class Served(nn.Sequential):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    layers, x = [nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)], torch.randn(300, 32)
    by_noise = tersor.calibrate(Served(*layers), [x]).importance
    by_gradients = tersor.calibrate(nn.Sequential(*layers), [x]).importance
    assert by_noise == pytest.approx(by_gradients, rel=0.5)
    assert by_noise != by_gradients


def test_the_model_and_the_generator_are_as_before():
    dense, batches = tower()
    dense.first.weight.requires_grad_(False)
    dense.second.weight.grad = torch.ones(32, 64)
    state = torch.random.get_rng_state()
    tersor.calibrate(dense, batches)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not dense.first.weight.requires_grad
    assert dense.second.bias.requires_grad
    assert torch.equal(dense.second.weight.grad, torch.ones(32, 64))
    assert dense.head.weight.grad is None


def test_importance_is_the_same_each_time():
    dense, batches = tower()
    first, second = (tersor.calibrate(dense, batches).importance for _ in range(2))
    assert first == second
