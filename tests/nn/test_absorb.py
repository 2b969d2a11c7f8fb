# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation that convolutions compute, where nothing else of the model changes."""

import copy
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tersor
from tersor.factors import Factors
from tersor.nn import insert_factors
from tersor.nn.convolution import FORMS
from tersor.nn.frozen import DenseWeight

IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A convolution with factors, one with a weight of its own, and a way to use them."""

    def __init__(self, way="plain"):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(8)
        self.way = way
        for norm in (self.first_norm, self.second_norm):
            for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(values, 0.5, 2)

    def forward(self, x):
        x = torch.relu(self.first_norm(self.first(x)))
        y = self.second(x)
        match self.way:
            case "used twice":
                return y + self.second_norm(y)
            case "given back":
                return self.second_norm(y), y
            case "changed in place":
                return self.second_norm(F.relu_(y))
            case "called twice":
                return self.second_norm(self.second(self.second_norm(y)))
            case "not called":
                return y
            case "another branch":
                return self.second_norm(x)
        return self.second_norm(y)


def compressed(way="plain"):
    model = Net(way).eval()
    draw = torch.Generator().manual_seed(2)
    latent = torch.randint(-3, 4, (3, 8 * 9), generator=draw, dtype=torch.int16)
    codebook = torch.randint(-20, 21, (3, 3), generator=draw, dtype=torch.int16)
    insert_factors(model, {"first.weight": Factors(codebook, latent, 2e-3, (8, 3, 3, 3))})
    return model


def outputs(model):
    with torch.no_grad():
        found = model(IMAGES)
    return found if isinstance(found, tuple) else (found,)


def norms(model):
    return [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("mode", ["dense", "auto"])
def test_the_same_is_computed_without_the_layers(mode):
    model = compressed()
    expected = outputs(model)
    report = tersor.optimize(model, mode, inputs=IMAGES)
    taken = report.choices[0].mode.startswith("dense")
    assert taken or mode == "auto"
    assert report.absorbed == (("first_norm", "second_norm") if taken else ())
    assert norms(model) == ([] if taken else ["first_norm", "second_norm"])
    assert ("done by the convolution before it: first_norm" in str(report)) is taken
    torch.testing.assert_close(outputs(model), expected, rtol=1e-3, atol=1e-3)
    for other in (copy.deepcopy(model), copy.deepcopy(model).to(torch.float64)):
        assert norms(other) == norms(model)
    torch.testing.assert_close(outputs(copy.deepcopy(model)), outputs(model))


def test_every_dense_form_absorbs(monkeypatch):
    module = import_module("tersor.inference.optimize")
    forms = [form for form in (DenseWeight, *FORMS) if form.is_dense]
    for form in forms:
        model = compressed()
        if form is not DenseWeight and not form.takes(model.first, None):
            continue
        expected = outputs(model)
        monkeypatch.setattr(module, "_fixed", lambda *_, form=form: form)
        assert tersor.optimize(model, "dense", inputs=IMAGES).absorbed[0] == "first_norm"
        assert type(model.first.weight_factors) is form
        torch.testing.assert_close(outputs(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "way", ["used twice", "given back", "changed in place", "called twice", "not called"]
)
def test_outputs_with_another_use_are_left(way):
    model = compressed(way)
    expected = outputs(model)
    report = tersor.optimize(model, "dense", inputs=IMAGES)
    assert "second_norm" not in report.absorbed and "second_norm" in norms(model)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)


def test_what_does_not_follow_a_convolution_is_left():
    model = compressed("another branch")
    expected = outputs(model)
    assert tersor.optimize(model, "dense", inputs=IMAGES).absorbed == ("first_norm",)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)


def test_layers_in_training_and_with_hooks_are_left():
    model = compressed()
    model.first_norm.train()
    assert tersor.optimize(model, "dense", inputs=IMAGES).absorbed == ("second_norm",)
    model, seen = compressed(), []
    model.first_norm.register_forward_hook(lambda *_: seen.append(1))
    model.second.register_forward_hook(lambda *_: seen.append(2))
    assert tersor.optimize(model, "dense", inputs=IMAGES).absorbed == ()


def test_only_what_is_seen_is_absorbed():
    model = compressed()
    assert tersor.optimize(model, "dense").absorbed == ()
    assert len(norms(model)) == 2


@pytest.mark.parametrize("mode", ["recompose", "factored"])
def test_models_that_can_be_saved_stay_as_they_are(mode, tmp_path):
    model = compressed()
    tersor.save(model, tmp_path / "before.tersor")
    assert tersor.optimize(model, mode, inputs=IMAGES).absorbed == ()
    tersor.save(model, tmp_path / "after.tersor")
    before, after = (
        tersor.load_state_dict(tmp_path / f"{name}.tersor") for name in ("before", "after")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
