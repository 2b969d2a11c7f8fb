# SPDX-License-Identifier: Apache-2.0
"""Models in which layers of low rank take the places of others."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tersor
from tersor.lowrank import decompose, restructure


class Net(nn.Module):
    """Convolutions of all kinds, a residual, normalisation and a tied pair."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 48, 3, padding=1)
        self.norm = nn.BatchNorm2d(48)
        self.middle = nn.Conv2d(48, 48, 3, padding=1)
        self.apart = nn.Conv2d(48, 48, 5, padding=2, groups=48)
        self.grouped = nn.Conv2d(48, 64, 3, stride=2, padding=1, groups=2)
        self.head = nn.Linear(64, 40)
        self.tied = nn.Linear(40, 40)
        self.also = nn.Linear(40, 40)
        self.also.weight = self.tied.weight

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.middle(x))
        x = torch.relu(self.grouped(torch.relu(self.apart(x))))
        x = torch.relu(self.head(x.mean((2, 3))))
        return self.also(torch.relu(self.tied(x)))


def batches(count=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 3, 12, 10, generator=draw) for _ in range(count)]


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    model = Net()
    for batch in batches(8, seed=1):
        model(batch)  # running statistics
    return model.eval()


def operations(model, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() / 2 / len(x)


@pytest.mark.parametrize("flops", [0.8, 0.5])
def test_operations_are_counted_and_kept_within_the_budget(dense, flops):
    model = copy.deepcopy(dense)
    done = decompose(model, flops=flops, data=batches())
    x = batches(1)[0]
    assert done.operations == (operations(dense, x), operations(model, x))
    assert 0.9 * flops < done.operations[1] / done.operations[0] <= flops
    counts = [sum(p.numel() for p in m.parameters()) for m in (dense, model)]
    assert done.parameters == tuple(counts)
    assert [row.name for row in done.layers] == ["first", "middle", "apart", "head"]


def test_outputs_are_near_and_better_with_data(dense):
    with_data, without = copy.deepcopy(dense), copy.deepcopy(dense)
    done = decompose(with_data, ratio=1.4, data=batches())
    decompose(without, ratio=1.4)
    held = batches(2, seed=7)
    error, other = (tersor.output_error(m, dense, held) for m in (with_data, without))
    assert error < other
    assert error < 4 * done.error + 1e-3  # predicted, layer by layer


def test_zero_and_constant_weights_are_split_too():
    layers = nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 3), nn.Conv2d(48, 48, 3)
    dense = nn.Sequential(*layers)
    nn.init.zeros_(dense[2].weight)
    nn.init.constant_(dense[3].weight, 0.5)
    model, data = copy.deepcopy(dense), batches()
    with pytest.warns(UserWarning, match="does not depend"):
        done = decompose(model, flops=0.2, data=data)
    assert tersor.output_error(model, dense, data) < 1e-6
    assert {"2", "3"} <= set(done.plan)


def test_what_is_left_says_why(dense):
    done = decompose(copy.deepcopy(dense), ratio=1.1, keep=["head"])
    assert done.left["head"] == "it is to be kept"
    assert "several uses" in done.left["tied"] == done.left["also"]
    assert "groups" in done.left["grouped"]
    assert "head" not in done.plan


def test_a_plan_makes_the_same_layers_in_a_new_model(dense):
    model = copy.deepcopy(dense)
    done = decompose(model, flops=0.6, data=batches())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = Net().eval()
    restructure(fresh, done.plan)
    fresh.load_state_dict(torch.load(file))
    x = batches(1)[0]
    torch.testing.assert_close(fresh(x), model(x), rtol=0, atol=0)


def test_the_result_is_an_ordinary_model(dense, tmp_path):
    """It exports, trains, and is compressed like others."""
    model = copy.deepcopy(dense)
    done = decompose(model, flops=0.6, data=batches())
    x = batches(1)[0]
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    tersor.compress(model, ratio=4, data=batches())
    tersor.save(model, tmp_path / "a.tersor")
    fresh = Net().eval()
    restructure(fresh, done.plan)
    tersor.load(tmp_path / "a.tersor", fresh)
    torch.testing.assert_close(fresh(x), model(x))


def test_the_largest_drop_is_kept(dense):
    x = batches(2, seed=3)

    def score(model):
        return -tersor.output_error(model, dense, x)

    model = copy.deepcopy(dense)
    done = decompose(model, max_drop=0.05, evaluate=score, data=batches())
    assert score(model) >= -0.05
    assert done.operations[1] < 0.9 * done.operations[0]


def test_modes_types_and_frozen_weights_stay(dense):
    model = copy.deepcopy(dense).bfloat16().train()
    model.middle.requires_grad_(False)
    decompose(model, ratio=1.5)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(module.training for module in model.modules())
    parts = list(model.middle.parameters())
    assert len(parts) > 2 and not any(p.requires_grad for p in parts)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "exactly one"),
        ({"flops": 0.5, "ratio": 2}, "exactly one"),
        ({"flops": 0.5}, "give data"),
        ({"flops": 2, "data": batches()}, "share of the operations"),
        ({"ratio": 0.5}, "at least 1"),
        ({"max_drop": 1}, "evaluate"),
        ({"ratio": 2, "forms": ["svd"]}, "no forms"),
        ({"ratio": 2, "data": []}, "empty"),
        ({"ratio": 1000}, "a ratio of .* or less"),
        ({"flops": 0.001, "data": batches()}, "flops=.* or more"),
    ],
)
def test_what_cannot_be_is_refused(dense, options, message):
    model = copy.deepcopy(dense)
    with pytest.raises(tersor.InputError, match=message):
        decompose(model, **options)
    assert [*model.state_dict()] == [*dense.state_dict()]


def test_a_model_that_reads_weights_by_itself_is_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x):
            return nn.functional.linear(x, self.layer.weight)

    model = Own()
    with pytest.raises(tersor.InputError, match="keep"):
        decompose(model, ratio=2, data=[torch.randn(64, 64)])
    assert isinstance(model.layer, nn.Linear)


@pytest.mark.parametrize(
    "plan, message",
    [
        ({"nothing": ("outputs", [2])}, "no module"),
        ({"norm": ("outputs", [2])}, "a BatchNorm2d"),
        ({"middle": ("depthwise", [1])}, "cannot be split"),
        ({"middle": ("svd", [1])}, "cannot be split"),
        ({"middle": ("tucker", [1])}, "ranks"),
        ({"middle": ("outputs", [49])}, "at most"),
    ],
)
def test_plans_of_other_models_are_refused(plan, message):
    model = Net()
    with pytest.raises(tersor.InputError, match=message):
        restructure(model, {"head": ("outputs", [4])} | plan)
    assert isinstance(model.head, nn.Linear)
