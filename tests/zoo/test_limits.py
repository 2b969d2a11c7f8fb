# SPDX-License-Identifier: Apache-2.0
"""Models that cannot be compressed or filled are refused, and left as they were."""

import pytest
import torch
from constructs import SIZE, Called, linear
from examine import tensors_of
from torch import nn

import tersor
from tersor.errors import InputError

X = torch.linspace(-1, 1, 2 * SIZE).reshape(2, SIZE)


class Overwritten(nn.Module):
    """Has a child of the name under which a factored weight is held."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SIZE, SIZE))
        self.weight_factors = linear()

    def forward(self, x):
        return self.weight_factors(x @ self.weight)


class Registry(nn.Module):
    """Subclasses need to be registered under a name."""

    def __init_subclass__(cls, *, name: str, **more):
        super().__init_subclass__(**more)


class Registered(Registry, name="registered"):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(SIZE, SIZE))

    def forward(self, x):
        return x @ self.kernel


class Remembering(nn.Module):
    """Computes with a reference to a weight that another module owns."""

    def __init__(self):
        super().__init__()
        self.linear = linear()
        self.weights = [self.linear.weight]

    def forward(self, x):
        return x @ self.weights[0]


def test_a_child_is_not_overwritten():
    model = Called(Overwritten(), linear())
    before = model(X)
    with pytest.warns(UserWarning, match="weight_factors"):
        tersor.compress(model, ratio=1.2)
    assert isinstance(model.parts[0].weight_factors, nn.Linear)
    torch.testing.assert_close(model(X), before, rtol=0, atol=0.1)


def test_a_class_that_cannot_be_derived_stays_as_it_is():
    model = Registered()
    before = model(X)
    with pytest.raises(InputError, match="subclass"):
        tersor.compress(model, ratio=2)
    assert torch.equal(model(X), before)


def test_a_weight_with_a_second_reference_is_refused_or_told(tmp_path):
    model = Remembering()
    with pytest.raises(InputError, match=r"weights"):
        tersor.compress(model, ratio=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("act", [tersor.save, tersor.load], ids=["save", "load"])
def test_torchscript(tmp_path, act):
    scripted = torch.jit.script(Called(linear()))
    tersor.save(Called(linear()), tmp_path / "model.tersor")
    arguments = (scripted, tmp_path / "other.tersor")
    if act is tersor.load:
        arguments = (tmp_path / "model.tersor", scripted)
    with pytest.raises(InputError, match="TorchScript"):
        act(*arguments)


def test_a_lazy_layer_is_called_first(tmp_path):
    tersor.save(nn.Linear(SIZE, SIZE), tmp_path / "model.tersor")
    with pytest.raises(InputError, match="run the model once"):
        tersor.load(tmp_path / "model.tersor", nn.LazyLinear(SIZE))
    with pytest.raises(InputError, match="run the model once"):
        tersor.compress(Called(nn.LazyLinear(SIZE)), ratio=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_packed_weights_are_refused(tmp_path):
    """A lossless file without the weight would be worse than none."""
    dense = Called(linear(), linear())
    packed = torch.ao.quantization.quantize_dynamic(dense, {"parts.0"}, dtype=torch.qint8)
    with pytest.raises(InputError, match=r"parts\.0\._packed_params"):
        tersor.save(packed, tmp_path / "model.tersor", lossless=True)
    assert not (tmp_path / "model.tersor").exists()


def test_a_weight_of_repeated_memory_is_filled(tmp_path):
    model, other = linear(), linear()
    for layer in (model, other):
        layer.weight = nn.Parameter(torch.randn(SIZE, 1).expand(SIZE, SIZE))
    tersor.save(model, tmp_path / "model.tersor", lossless=True)
    tersor.load(tmp_path / "model.tersor", other)
    assert tensors_of(other) == tensors_of(model)
    torch.testing.assert_close(other(X), model(X))


@pytest.mark.filterwarnings("ignore:a weight stays as it is")
def test_patterns_may_name_what_stays_anyway():
    model = Called(nn.utils.parametrizations.weight_norm(linear()), linear())
    report = tersor.compress(model, ratio=1.5, keep=["parts.0.*"])
    assert [t.name for t in report.factored] == ["parts.1.weight"]


class Foreign(torch.Tensor):
    """Tensors of a class of their own, as quantization libraries have them."""


def test_a_weight_of_a_class_of_tensors_stays_as_it_is():
    model = Called(linear(), linear())
    model.parts[0].weight = nn.Parameter(model.parts[0].weight.data.as_subclass(Foreign))
    before = tensors_of(model)["parts.0.weight"]
    with pytest.warns(UserWarning, match=r"'parts\.0\.weight'.*Foreign"):
        report = tersor.compress(model, ratio=1.2)
    assert [t.name for t in report.factored] == ["parts.1.weight"]
    assert tensors_of(model)["parts.0.weight"] == before


class Labelled(nn.Linear):
    """A layer with extra state that is no tensor."""

    def __init__(self):
        super().__init__(SIZE, SIZE)

    def get_extra_state(self):
        return {"label": "a"}

    def set_extra_state(self, state):
        raise AssertionError("nothing was saved")


def test_extra_state_that_is_no_tensor_is_left_out_and_told(tmp_path):
    model, back = Called(Labelled()), Called(Labelled())
    with pytest.warns(UserWarning, match=r"left out: \['parts.0._extra_state'\]"):
        tersor.save(model, tmp_path / "model.tersor", lossless=True)
    with pytest.warns(UserWarning, match="left out"):
        tersor.load(tmp_path / "model.tersor", back)
        assert tensors_of(back) == tensors_of(model)


def test_a_refusal_changes_nothing():
    model = Called(nn.Embedding(80, SIZE, sparse=True))
    before = tensors_of(model)
    with pytest.raises(InputError, match="sparse"):
        tersor.compress(model, ratio=2)
    assert tensors_of(model) == before
