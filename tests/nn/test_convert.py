# SPDX-License-Identifier: Apache-2.0
"""Dense model <-> factored model: names, ties, what is preserved, what is refused."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from toys import TOKENS, TiedModel, factors_of, output, pair, random_factors

from tersor.errors import InputError
from tersor.nn import FactoredWeight, convert, insert_factors, state


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten())


def test_part_of_a_model():
    model = small()
    names = list(model.state_dict())
    factors = random_factors((4, 4, 3, 3))
    insert_factors(model, {"2.weight": factors})
    found = state(model)
    assert list(found) == names
    assert [name for name in names if isinstance(found[name], FactoredWeight)] == ["2.weight"]
    assert found["0.weight"].data_ptr() == model[0].weight.data_ptr()
    insert_factors(model, {"0.weight": random_factors((4, 3, 3, 3))})
    assert list(state(model)) == names
    assert sum(isinstance(value, FactoredWeight) for value in state(model).values()) == 2


def test_several_weights_of_one_module_one_by_one():
    lstm = nn.LSTM(5, 4)
    names = list(lstm.state_dict())
    for name in ("weight_hh_l0", "weight_ih_l0"):
        shape = tuple(lstm.get_parameter(name).shape)
        insert_factors(lstm, {name: random_factors(shape)})
        assert isinstance(state(lstm)[name], FactoredWeight)
    assert list(state(lstm)) == names
    assert len(list(lstm.children())) == 2


def test_new_factors_take_the_place_of_old_ones():
    _, model, _ = pair(TiedModel)
    newer = random_factors((11, 8), seed=1)
    insert_factors(model, {"head.weight": newer})
    assert torch.equal(model.embed.weight, newer.recompose())
    assert len(list(model.parameters())) == 6


def test_state_of_a_dense_model_is_its_state_dict():
    model = TiedModel()
    found, expected = state(model), model.state_dict()
    assert list(found) == list(expected)
    assert all(found[name].data_ptr() == expected[name].data_ptr() for name in expected)
    assert found["embed.weight"].data_ptr() == found["head.weight"].data_ptr()


@pytest.mark.parametrize(
    "names", [["embed.weight"], ["head.weight"], ["head.weight", "embed.weight"]]
)
def test_tied_weights_share_one_holder(names):
    dense, _, _ = pair(TiedModel)
    model, factors = copy.deepcopy(dense), random_factors((11, 8))
    insert_factors(model, dict.fromkeys(names, factors))
    for other in (model, copy.deepcopy(model), copy.deepcopy(model).to(torch.float64).float()):
        assert other.embed.weight_factors is other.head.weight_factors
        assert len(list(other.parameters())) == 3 + 3  # factors; norm and head.bias
        found = state(other)
        assert found["embed.weight"] is found["head.weight"]
    for trained in (dense, model):
        trained(TOKENS).square().sum().backward()
    holder = model.embed.weight_factors
    grad = holder.tiling.split(dense.embed.weight.grad)
    expected = factors.scale * grad @ factors.latent.float().T
    torch.testing.assert_close(holder.codebook.grad, expected, rtol=1e-5, atol=1e-5)


def test_one_module_under_two_names():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    insert_factors(model, {"2.weight": random_factors((8, 8))})
    assert model[0] is model[2]
    found = state(model)
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert found["0.weight"] is found["2.weight"]


def test_module_keeps_identity_hooks_and_flags():
    model = small().eval()
    layer, seen = model[2], []
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    insert_factors(model, factors_of(model))
    model(torch.randn(2, 3, 7, 7)).sum().backward()
    assert seen == ["forward", "backward"]
    assert model[2] is layer and isinstance(layer, nn.Conv2d)
    assert not any(module.training for module in model.modules())


def test_frozen_weights_stay_frozen():
    model = small().requires_grad_(False)
    model[2].weight.requires_grad_()
    insert_factors(model, factors_of(model))
    assert not any(p.requires_grad for p in model[0].parameters())
    assert all(p.requires_grad for p in model[2].weight_factors.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weight_has_the_type_of_the_parameter_it_replaces(dtype):
    model = nn.Linear(20, 6).to(dtype)
    insert_factors(model, {"weight": random_factors((6, 20))})
    assert model.weight.dtype == state(model)["weight"].dtype == dtype
    assert model(torch.ones(1, 20, dtype=dtype)).dtype == dtype
    assert model.weight_factors.codebook.dtype == torch.float32


def test_the_dense_weight_is_freed_before_its_factors_are_made(monkeypatch):
    model = nn.Linear(20, 6)
    dense = weakref.ref(model.weight)

    class Watching(FactoredWeight):
        def __init__(self, *args, **options):
            assert dense() is None
            super().__init__(*args, **options)

    monkeypatch.setattr(convert, "FactoredWeight", Watching)
    places = convert.replaceable(model, {"weight": (6, 20)})
    convert.replace_weight(places.pop("weight"), random_factors((6, 20)))
    assert isinstance(model.weight_factors, Watching)


@pytest.mark.parametrize("make", [lambda: nn.Linear(20, 6), lambda: nn.LSTM(5, 4)])
def test_dense_weights_are_freed(make):
    model = make()
    dense = [weakref.ref(weight) for weight in model.parameters() if weight.ndim == 2]
    insert_factors(model, factors_of(model))
    gc.collect()
    assert all(weight() is None for weight in dense)
    assert "_flat_weights" not in model.__dict__


def test_one_buffer_of_a_recurrent_layer_is_freed():
    """As under cuDNN, where all weights and biases are views of it."""
    lstm = nn.LSTM(5, 4)
    buffer = nn.utils.parameters_to_vector(lstm.parameters()).detach()
    nn.utils.vector_to_parameters(buffer, lstm.parameters())
    insert_factors(lstm, factors_of(lstm))
    for bias in (lstm.bias_ih_l0, lstm.bias_hh_l0):
        assert bias.untyped_storage().nbytes() == bias.nbytes


def test_recurrent_layers_use_current_factors():
    _, lstm, _ = pair(lambda: nn.LSTM(5, 4))
    x = torch.randn(3, 2, 5)
    before = output(lstm, (x,))
    lstm.weight_hh_l0_factors.codebook.data.mul_(2)
    after = output(lstm, (x,))
    assert not torch.equal(before, after)
    lstm.flatten_parameters()
    assert torch.equal(output(lstm, (x,)), after)


def test_assigning_a_factored_weight_is_an_error():
    model = nn.Linear(20, 6)
    insert_factors(model, {"weight": random_factors((6, 20))})
    for value in (torch.zeros(6, 20), nn.Parameter(torch.zeros(6, 20))):
        with pytest.raises((AttributeError, KeyError)):
            model.weight = value


def test_extra_state_that_is_no_tensor_is_reported():
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"version": 3}

    with pytest.warns(UserWarning, match="_extra_state"):
        assert list(state(Odd(2, 2))) == ["weight", "bias"]


def old_weight_norm():
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(20, 6)))


def pruned():
    return nn.Sequential(prune.l1_unstructured(nn.Linear(20, 6), "weight", 0.5))


def scripted():
    return torch.jit.script(nn.Sequential(nn.Linear(20, 6)))


def wrapped(layer):
    return lambda: nn.Sequential(layer())


class OwningSequential(nn.Sequential):
    def __init__(self):
        super().__init__(nn.ReLU())
        self.table = nn.Parameter(torch.randn(6, 20))


@pytest.mark.parametrize(
    "make, name, message",
    [
        (small, "2.wieght", "no parameter '2.wieght'; did you mean '2.weight'"),
        (small, "nothing at all", "state_dict"),
        (small, "1.running_mean", "buffer"),
        (small, "2.weight", r"\(4, 4, 3, 3\), got shape \(6, 20\)"),
        (wrapped(lambda: parametrizations.weight_norm(nn.Linear(20, 6))), "0.weight", "remove"),
        (
            wrapped(lambda: parametrizations.spectral_norm(nn.Linear(20, 6))),
            "0.parametrizations.weight.original",
            "remove",
        ),
        (old_weight_norm, "0.weight", "remove"),
        (old_weight_norm, "0.weight_v", "remove"),
        (pruned, "0.weight_orig", "remove"),
        (wrapped(lambda: nn.LazyLinear(6)), "0.weight", "run the model once"),
        (wrapped(lambda: nn.Linear(20, 6, dtype=torch.complex64)), "0.weight", "complex64"),
        (wrapped(lambda: nn.Embedding(6, 20, sparse=True)), "0.weight", "sparse"),
        pytest.param(
            *(scripted, "0.weight", "TorchScript"),
            marks=pytest.mark.filterwarnings("ignore::DeprecationWarning"),
        ),
        (OwningSequential, "table", "move the parameter"),
    ],
)
def test_what_cannot_be_replaced_is_refused_and_nothing_changed(make, name, message):
    model = make()
    names = list(model.state_dict())
    with pytest.raises(InputError, match=message):
        insert_factors(model, {name: random_factors((6, 20))})
    assert list(model.state_dict()) == names
    assert not any(isinstance(module, FactoredWeight) for module in model.modules())


def test_one_wrong_name_changes_nothing():
    model = small()
    with pytest.raises(InputError):
        insert_factors(
            model, {"0.weight": random_factors((4, 3, 3, 3)), "x": random_factors((2, 2))}
        )
    assert type(model[0]) is nn.Conv2d


def test_tied_names_with_different_factors_are_refused():
    factors = {name: random_factors((11, 8)) for name in ("embed.weight", "head.weight")}
    with pytest.raises(InputError, match="tied"):
        insert_factors(TiedModel(), factors)
