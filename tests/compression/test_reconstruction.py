# SPDX-License-Identifier: Apache-2.0
"""Layers factored again for what reaches them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.errors import BudgetError, InputError
from tersor.nn import FactoredWeight, state


def convolutional() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, groups in ((3, 16, 1), (16, 16, 1), (16, 32, 4), (32, 32, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def linear() -> nn.Module:
    layers = [nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 20)]
    return nn.Sequential(*layers)


def samples(kind: str) -> Tensor:
    """Inputs with a structure, as images and features have it."""
    if kind == "linear":
        return torch.randn(600, 8) @ torch.randn(8, 40) + 0.1 * torch.randn(600, 40)
    return nn.functional.avg_pool2d(torch.randn(200, 3, 12, 12), 3, stride=1)


def pair(kind: str, ratio: float) -> tuple[nn.Module, nn.Module, Tensor]:
    """Dense and calibrated, compressed model; inputs."""
    torch.manual_seed(0)
    dense, inputs = {"linear": linear, "conv": convolutional}[kind](), samples(kind)
    dense(inputs)  # so that normalisation has statistics
    dense.eval()
    model = copy.deepcopy(dense)
    tersor.compress(model, ratio=ratio, calibration=tersor.calibrate(model, [inputs]))
    return dense, model, inputs


def factored(model: nn.Module) -> dict[str, FactoredWeight]:
    return {n: v for n, v in state(model).items() if isinstance(v, FactoredWeight)}


def error(model: nn.Module, dense: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        wanted = dense(inputs)
        return float((model(inputs) - wanted).square().mean() / wanted.var())


@pytest.mark.parametrize("kind, ratio", [("linear", 12), ("conv", 28)])
def test_outputs_come_closer_in_no_more_bytes(kind, ratio, tmp_path):
    dense, model, inputs = pair(kind, ratio)
    before, matched = copy.deepcopy(dense.state_dict()), copy.deepcopy(model)
    tersor.match_normalization(matched, dense, [inputs])
    size = tersor.save(model, tmp_path / "a.tersor").nbytes
    tersor.reconstruct(model, dense, [inputs])
    assert tersor.save(model, tmp_path / "b.tersor").nbytes <= 1.003 * size
    fresh = samples(kind) if kind == "conv" else inputs
    assert error(model, dense, fresh) < 0.85 * error(matched, dense, fresh)
    assert all(torch.equal(before[n], t) for n, t in dense.state_dict().items())
    back = tersor.load(tmp_path / "b.tersor", copy.deepcopy(dense))
    with torch.no_grad():
        assert torch.equal(back(inputs), model(inputs))


def test_layers_keep_their_shares_of_another_size():
    dense, model, inputs = pair("linear", 12)
    before = {n: v.to_factors().nbytes for n, v in factored(model).items()}
    tersor.reconstruct(model, dense, [inputs], target_size=int(1.5 * sum(before.values())))
    grown = {n: v.to_factors().nbytes / before[n] for n, v in factored(model).items()}
    assert len(grown) == 3 and all(1.2 < share < 1.5 for share in grown.values())


def test_binary_latents_stay_binary(tmp_path):
    torch.manual_seed(0)
    dense, inputs = linear().eval(), samples("linear")
    model = copy.deepcopy(dense)
    calibration = tersor.calibrate(model, [inputs])
    tersor.compress(model, target_size="4kB", calibration=calibration, lookup=["*"])
    old, before = state(model), error(model, dense, inputs)
    tersor.reconstruct(model, dense, [inputs], target_size="4kB")
    new = state(model)
    assert all((new[n].latent.abs() == 1).all() for n in ("0.weight", "2.weight", "4.weight"))
    assert new["2.weight"] is not old["2.weight"]
    assert error(model, dense, inputs) < before
    assert tersor.save(model, tmp_path / "model.tersor").nbytes <= 4000


def test_binary_latents_that_training_moved_stay_binary():
    torch.manual_seed(0)
    dense, inputs = linear().eval(), samples("linear")
    model = copy.deepcopy(dense)
    tersor.compress(model, target_size="4kB", lookup=["*"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("latent"):
                parameter += 0.01 * torch.randn(parameter.shape)
    tersor.reconstruct(model, dense, [inputs], target_size="4kB")
    new = state(model)
    assert all(new[n].binary for n in ("0.weight", "2.weight", "4.weight"))


@pytest.mark.slow
def test_the_mode_of_the_model_stays():
    dense, model, inputs = pair("conv", 12)
    model.train()
    tersor.reconstruct(model, dense, [inputs])
    assert model.training and not dense.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_weights_that_are_used_twice_stay():
    """What reaches them is not one thing."""
    torch.manual_seed(0)
    shared = nn.Linear(40, 40)
    dense = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(40, 40)).eval()
    model, inputs = copy.deepcopy(dense), samples("linear")
    tersor.compress(model, ratio=8)
    old = state(model)
    tersor.reconstruct(model, dense, [inputs])
    new = state(model)
    assert new["0.weight"] is old["0.weight"] and new["4.weight"] is not old["4.weight"]
    assert isinstance(new["4.weight"], FactoredWeight)


def test_very_long_rows_stay():
    """Their moments would take hours: those of 8,192 inputs, 20 times the rest of the model."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(4100, 16), nn.ReLU(), nn.Linear(16, 64)).eval()
    model, x = copy.deepcopy(dense), torch.randn(50, 4100)
    tersor.compress(model, ratio=8)
    long, short = (state(model)[name] for name in ("0.weight", "2.weight"))
    before = [long.to_factors(), short.to_factors()]
    tersor.reconstruct(model, dense, [x])
    after = [state(model)[name].to_factors() for name in ("0.weight", "2.weight")]
    assert torch.equal(before[0].recompose(), after[0].recompose())
    assert not torch.equal(before[1].recompose(), after[1].recompose())


def test_models_that_do_not_go_together_are_refused():
    dense, model, inputs = pair("linear", 8)
    with pytest.raises(InputError, match="holds no factors; compress it first"):
        tersor.reconstruct(dense, dense, [inputs])
    with pytest.raises(InputError, match=r"two models differ, in '0\.weight'"):
        tersor.reconstruct(model, convolutional(), [inputs])


def test_inputs_that_never_reach_a_layer_leave_it():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(40, 40), nn.Linear(40, 40)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    torch.manual_seed(0)
    dense = Idle().eval()
    model = copy.deepcopy(dense)
    tersor.compress(model, ratio=8)
    old = state(model)["idle.weight"]
    tersor.reconstruct(model, dense, [samples("linear")])
    assert state(model)["idle.weight"] is old


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1] * 300, [600], [300, 1]])
def test_batches_of_any_size(sizes):
    dense, model, inputs = pair("linear", 8)
    before = error(model, dense, inputs)
    tersor.reconstruct(model, dense, list(inputs[: sum(sizes)].split(sizes)))
    assert error(model, dense, inputs) < before


def test_a_single_sample_is_too_little_but_no_failure():
    dense, model, inputs = pair("linear", 8)
    tersor.reconstruct(model, dense, [inputs[:1]])
    assert error(model, dense, inputs) < 0.2


def test_budgets_that_are_too_small_are_refused():
    dense, model, inputs = pair("linear", 8)
    with pytest.raises(BudgetError, match="100 bytes are too few for the reconstructed model"):
        tersor.reconstruct(model, dense, [inputs], target_size=100)


class Forked(nn.Module):
    """Of the same weights as another, it may run other layers, or the same for other inputs."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second = nn.Linear(40, 40), nn.Linear(40, 40)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "both":
            return self.second(self.first(x))
        return self.second(self.first(x)[: len(x) // 2] if self.way == "half" else x)


@pytest.mark.parametrize(
    "way, message", [("second", "do not run the same layers"), ("half", "gets inputs of shape")]
)
def test_models_that_run_differently_are_refused(way, message):
    torch.manual_seed(0)
    model, reference = Forked("both").eval(), Forked(way).eval()
    reference.load_state_dict(model.state_dict())
    tersor.compress(model, ratio=8)
    with pytest.raises(InputError, match=message):
        tersor.reconstruct(model, reference, [samples("linear")])
