# SPDX-License-Identifier: Apache-2.0
"""Compress a model, save it, load it: the same model back."""

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from samples import Net, bits, make_net, same
from torch import nn

import tersor
from tersor.errors import BudgetError, InputError
from tersor.nn import FactoredWeight, insert_factors, state
from tersor.storage import container
from tersor.storage.archive import Plain, Reason
from tersor.storage.opened import open_file

IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def snapshot(model):
    return copy.deepcopy({n: t for n, t in model.state_dict().items()})


def factored_names(model):
    return [name for name, value in state(model).items() if isinstance(value, FactoredWeight)]


def dense_state(model):
    return {
        name: value.to_factors().recompose() if isinstance(value, FactoredWeight) else value
        for name, value in state(model).items()
    }


def test_compress_changes_the_model_into_what_is_saved(tmp_path):
    model = make_net()
    dense_size = sum(t.nbytes for t in Net().state_dict().values()) - model.embed.weight.nbytes
    before = snapshot(model)
    report = tersor.compress(model, ratio=3)
    assert report.source_bytes == dense_size
    assert report.nbytes <= dense_size / 3
    assert [t.name for t in report.factored] == ["conv.weight", "embed.weight"]
    assert factored_names(model) == ["conv.weight", "embed.weight", "head.weight"]
    assert torch.equal(model.conv.bias, before["conv.bias"].bfloat16().float())
    assert torch.equal(model.positions, before["positions"])
    saved = tersor.save(model, tmp_path / "model.tersor")
    assert saved.nbytes == (tmp_path / "model.tersor").stat().st_size <= report.nbytes


EVALUATE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from samples import Net
import tersor
images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
model = tersor.load(sys.argv[2], Net().eval())
torch.save((tersor.load_state_dict(sys.argv[2]), model(images)), sys.argv[3])
"""


def test_a_fresh_process_gives_the_same_bits(tmp_path):
    model = make_net()
    tersor.compress(model, ratio=3)
    tersor.save(model, tmp_path / "model.tersor")
    folder = str(Path(__file__).parents[1] / "support")
    arguments = [folder, tmp_path / "model.tersor", tmp_path / "result.pt"]
    subprocess.run([sys.executable, "-c", EVALUATE, *arguments], check=True)
    weights, output = torch.load(tmp_path / "result.pt")
    assert same(weights, dense_state(model))
    assert bits(output) == bits(model(IMAGES))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types_are_kept(tmp_path, dtype):
    model = make_net().to(dtype)
    tersor.compress(model, ratio=2)
    assert all(t.dtype in (dtype, torch.int64) for t in dense_state(model).values())
    tersor.save(model, tmp_path / "model.tersor")
    back = tersor.load(tmp_path / "model.tersor", make_net(1).to(dtype))
    assert same(dense_state(back), dense_state(model))
    assert bits(back(IMAGES.to(dtype))) == bits(model(IMAGES.to(dtype)))


def test_a_model_of_another_type_takes_the_values(tmp_path):
    model = make_net()
    tersor.compress(model, ratio=3)
    tersor.save(model, tmp_path / "model.tersor")
    half = tersor.load(tmp_path / "model.tersor", make_net(1).half())
    assert torch.equal(half.conv.weight, model.conv.weight.half())


def test_tied_weights_stay_tied(tmp_path):
    model = make_net()
    report = tersor.compress(model, ratio=3)
    assert model.head.weight_factors is model.embed.weight_factors
    assert report.tensors[-1].note == "same as embed.weight"
    tersor.save(model, tmp_path / "model.tersor")
    assert open_file(tmp_path / "model.tersor").original("head.weight") == "embed.weight"
    back = tersor.load(tmp_path / "model.tersor", make_net(1))
    assert back.head.weight_factors is back.embed.weight_factors


class Untied(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 20, bias=False)


def test_an_untied_model_takes_tied_weights(tmp_path):
    model = make_net()
    tersor.compress(model, ratio=3)
    tersor.save(model, tmp_path / "model.tersor")
    back = tersor.load(tmp_path / "model.tersor", make_net(1, Untied))
    assert torch.equal(back.head.weight, model.head.weight)
    assert back.head.weight_factors is not back.embed.weight_factors


def test_a_tied_model_takes_equal_weights_only(tmp_path):
    equal, different = make_net(0, Untied), make_net(0, Untied)
    tersor.compress(equal, ratio=3)
    insert_factors(equal, {"head.weight": state(equal)["embed.weight"].to_factors()})
    tersor.save(equal, tmp_path / "equal.tersor")
    tersor.compress(different, ratio=3)
    tersor.save(different, tmp_path / "other.tersor")
    back = tersor.load(tmp_path / "equal.tersor", make_net(1))
    assert torch.equal(back.head.weight, equal.head.weight)
    with pytest.raises(
        InputError, match=r"ties what is not the same .*embed.weight and head.weight"
    ):
        tersor.load(tmp_path / "other.tersor", make_net(1))


def test_a_partly_factored_model_comes_back(tmp_path):
    """Large enough to be factored, but a user has made it dense again, or never compressed it."""
    model = make_net()
    tersor.compress(model, ratio=3)
    model.conv = make_net(2).conv
    model.conv.bias.data = model.conv.bias.bfloat16().float()
    report = tersor.save(model, tmp_path / "model.tersor")
    notes = {t.name: t.note for t in report.tensors}
    assert notes["conv.weight"] == "exact: left dense"
    back = tersor.load(tmp_path / "model.tersor", make_net(1))
    assert factored_names(back) == ["embed.weight", "head.weight"]
    assert bits(back.conv.weight) == bits(model.conv.weight)
    assert bits(back(IMAGES)) == bits(model(IMAGES))


def test_a_model_can_be_compressed_again():
    model = make_net()
    tersor.compress(model, ratio=2.7)
    first = dense_state(model)
    report = tersor.compress(model, ratio=3)
    assert report.nbytes <= report.source_bytes / 3
    assert factored_names(model) == ["conv.weight", "embed.weight", "head.weight"]
    assert not torch.equal(model.conv.weight, first["conv.weight"])


def test_a_model_can_be_loaded_again(tmp_path):
    """Into a model that holds factors already."""
    model = make_net()
    tersor.compress(model, ratio=3)
    tersor.save(model, tmp_path / "model.tersor")
    other = make_net(5)
    tersor.compress(other, ratio=2.8)
    assert same(dense_state(tersor.load(tmp_path / "model.tersor", other)), dense_state(model))


def test_a_dense_weight_does_not_go_where_factors_are(tmp_path):
    """Nothing is left as it was without a word."""
    tersor.save(make_net(), tmp_path / "dense.tersor")
    model = make_net(1)
    tersor.compress(model, ratio=3)
    with pytest.raises(InputError, match=r"holds factors, from another file, .*: conv\.weight"):
        tersor.load(tmp_path / "dense.tersor", model)


def test_a_matrix_in_a_buffer_is_kept(tmp_path):
    model = make_net()
    report = tersor.compress(model, ratio=3)
    assert {t.name: t.note for t in report.tensors}["positions"].startswith("exact: left dense")
    assert isinstance(model._buffers["positions"], torch.Tensor)


def test_a_matrix_in_a_buffer_is_filled_where_a_file_has_factors(tmp_path):
    """The command line knows no buffers."""
    from safetensors.torch import save_file

    from tersor.compression.driver import compress_source
    from tersor.storage.checkpoint import open_checkpoint

    model = make_net(0, Untied)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    archive = compress_source(open_checkpoint(tmp_path / "model.safetensors"), ratio=6)
    container.write(tmp_path / "model.tersor", archive)
    back = tersor.load(tmp_path / "model.tersor", make_net(1, Untied))
    assert not isinstance(archive.entries["positions"].content, Plain)
    assert torch.equal(back.positions, archive.tensor("positions"))


def test_one_layer_is_a_model():
    layer = nn.Linear(64, 64)
    report = tersor.compress(layer, target_size="2kB")
    assert report.nbytes <= 2000 and isinstance(layer.weight_factors, FactoredWeight)
    assert layer(torch.ones(1, 64)).shape == (1, 64)


def failing(budget=None, **changes):
    model = make_net()
    for name, value in changes.items():
        model.get_parameter(name.replace("_", ".", 1)).data[0] = value
    return model, budget or {"ratio": 3}


@pytest.mark.parametrize(
    "model, budget, message",
    [
        (*failing(conv_weight=float("nan")), r"tensor 'conv\.weight' has 27 elements that are NaN"),
        (*failing(norm_bias=float("nan")), r"tensor 'norm\.bias'"),
        (*failing({"ratio": 1}), "ask for less"),
        (*failing({"target_size": 20}), "smallest possible file has"),
        (*failing({"target_size": "54 apples"}), "not a size"),
        (*failing({"ratio": 3, "bits_per_weight": 2}), "exactly one"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))),
            {"ratio": 3},
            "weight_norm",
        ),
        (nn.Embedding(100, 64, sparse=True), {"ratio": 3}, "sparse gradients"),
        (nn.LazyLinear(64), {"ratio": 3}, "run the model once first"),
        (nn.Linear(64, 64, device="meta"), {"ratio": 3}, "without values"),
        (nn.ReLU(), {"ratio": 3}, "only 0 bytes"),
    ],
)
def test_after_a_failure_the_model_is_unchanged(model, budget, message):
    before = {n: t for n, t in model.state_dict().items()}
    copies = {
        n: bits(t) for n, t in before.items() if not t.is_meta and "Uninit" not in repr(type(t))
    }
    with pytest.raises(InputError, match=message):
        tersor.compress(model, **budget)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(bits(after[n]) == copies[n] for n in copies)
    assert not any(isinstance(m, FactoredWeight) for m in model.modules())


def test_modules_that_cannot_hold_factors_are_found_before_the_work(monkeypatch):
    monkeypatch.setattr(
        "tersor.compression.api.compress_source", lambda *a, **k: pytest.fail("too late")
    )
    with pytest.raises(InputError, match="weight_norm"):
        tersor.compress(nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)), ratio=3)


def test_an_impossible_budget_names_one_that_works():
    with pytest.raises(BudgetError) as caught:
        tersor.compress(make_net(), target_size=100)
    least = int(str(caught.value).partition("file has ")[2].split()[0])
    assert tersor.compress(make_net(), target_size=least).nbytes <= least


def test_saving_writes_at_most_what_compressing_promised(tmp_path):
    for ratio in (2.5, 2.8, 3):
        model = make_net(ratio)
        report = tersor.compress(model, ratio=ratio)
        assert tersor.save(model, tmp_path / "model.tersor").nbytes <= report.nbytes


def test_reasons_survive_saving(tmp_path):
    model = make_net()
    report = tersor.compress(model, ratio=3)
    tersor.save(model, tmp_path / "model.tersor")
    kept = {t.name: t.note for t in report.tensors if t.tile is None}
    again = {
        t.name: t.note for t in tersor.inspect(tmp_path / "model.tersor").tensors if not t.tile
    }
    assert kept == again
    notes = {t.name: t.note for t in tersor.inspect(tmp_path / "model.tersor").tensors}
    assert notes["norm.num_batches_tracked"] == f"exact: {Reason.NOT_FLOAT.describe()}"


def test_weights_may_be_kept_or_have_their_own_bits(tmp_path):
    """An unfactored weight is not touched; what is saved is what was asked for."""
    model = make_net()
    before = snapshot(model)
    report = tersor.compress(model, ratio=1.5, keep=["head.*"], bits={"conv.*": 4})
    assert factored_names(model) == ["conv.weight"]
    assert bits(model.embed.weight) == bits(before["head.weight"])
    assert 0 < report.factored[0].bits_per_weight <= 4
    saved = tersor.save(model, tmp_path / "model.tersor")
    assert saved.nbytes == report.nbytes
    with pytest.raises(InputError, match=r"similar names: conv.weight"):
        tersor.compress(make_net(), ratio=2, bits={"cnv*": 4})


class Tagged(nn.Linear):
    """Has a tensor of its own in its state."""

    def __init__(self, tag):
        super().__init__(24, 24)
        self.tag = tag

    def get_extra_state(self):
        return torch.tensor(self.tag)

    def set_extra_state(self, state):
        self.tag = float(state)


class Copied(nn.Linear):
    """Gives copies of its parameters for its state."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("weight", "bias"):
            destination[prefix + name] = destination[prefix + name].clone()


class Remembering(nn.Module):
    """Reads its weight from a container of its own."""

    def __init__(self, kind=list):
        super().__init__()
        self.linear = nn.Linear(24, 24)
        self.weights = kind([self.linear.weight])

    def forward(self, x):
        return x @ next(iter(self.weights))


class Stubborn(nn.Linear):
    """Loads something else than it is given."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "half"] = self.weight.detach() / 2

    def _load_from_state_dict(self, state, prefix, *args):
        self.weight.data = state[prefix + "half"] * 3


def test_extra_state_is_loaded(tmp_path):
    tersor.save(Tagged(3.0), tmp_path / "model.tersor")
    assert tersor.load(tmp_path / "model.tersor", Tagged(5.0)).tag == 3.0


@pytest.mark.parametrize("way", ["dense", "compressed"])
def test_copies_in_a_state_are_loaded(tmp_path, way):
    model = nn.Sequential(Copied(24, 24), nn.Linear(24, 24))
    promised = tersor.compress(model, ratio=1.5).nbytes if way == "compressed" else 9999
    assert tersor.save(model, tmp_path / "model.tersor").nbytes <= promised
    back = tersor.load(tmp_path / "model.tersor", nn.Sequential(Copied(24, 24), nn.Linear(24, 24)))
    x = torch.ones(1, 24)
    torch.testing.assert_close(back(x), model(x), atol=1e-2, rtol=1e-2)  # bias at 16 bits
    assert torch.equal(back[0].weight, model[0].weight)


@pytest.mark.parametrize("container", [list, tuple, set])
def test_weights_that_a_module_keeps_elsewhere_are_refused(tmp_path, container):
    model = Remembering(container)
    with pytest.raises(InputError, match="attribute 'weights' holds a weight"):
        tersor.compress(model, ratio=2)
    assert isinstance(model.linear.weight, nn.Parameter)
    tersor.save(model, tmp_path / "dense.tersor")
    back = tersor.load(tmp_path / "dense.tersor", Remembering())  # dense ones are filled in place
    assert torch.equal(back(torch.ones(1, 24)), model(torch.ones(1, 24)))


def test_a_model_that_changes_what_it_is_given_is_refused(tmp_path):
    tersor.save(Stubborn(4, 4, bias=False), tmp_path / "model.tersor")
    with pytest.raises(InputError, match="does not hold what was loaded: half"):
        tersor.load(tmp_path / "model.tersor", Stubborn(4, 4, bias=False))


def test_expanded_parameters_are_filled(tmp_path):
    def make():
        layer = nn.Linear(24, 24)
        layer.weight = nn.Parameter(torch.randn(24, 1).expand(24, 24))
        layer.bias = nn.Parameter(torch.randn(1).expand(24))
        return layer

    model = make()
    tersor.compress(model, ratio=2)
    tersor.save(model, tmp_path / "model.tersor")
    back = tersor.load(tmp_path / "model.tersor", make())
    assert torch.equal(back(torch.ones(1, 24)), model(torch.ones(1, 24)))


def normed():
    layers = (nn.utils.parametrizations.weight_norm(nn.Linear(24, 24)), nn.Linear(24, 24))
    return nn.Sequential(*layers)


def test_weights_of_modules_that_cannot_hold_factors_stay_dense(tmp_path):
    model = normed()
    with pytest.warns(UserWarning, match=r"'0\.parametrizations.weight.original1' .*remove"):
        report = tersor.compress(model, ratio=1.5)
    assert [t.name for t in report.factored] == ["1.weight"]
    with warnings.catch_warnings(action="error"):  # it was asked for
        tersor.compress(normed(), ratio=1.5, keep=["0.*"])
    tersor.save(model, tmp_path / "model.tersor")
    back = tersor.load(tmp_path / "model.tersor", normed())
    assert torch.equal(back(torch.ones(1, 24)), model(torch.ones(1, 24)))


def test_factors_of_such_weights_are_filled_dense(tmp_path):
    """The command line knows no modules."""
    from safetensors.torch import save_file

    from tersor.compression.driver import compress_source
    from tersor.storage.checkpoint import open_checkpoint

    save_file(normed().state_dict(), tmp_path / "model.safetensors")
    archive = compress_source(open_checkpoint(tmp_path / "model.safetensors"), ratio=3)
    container.write(tmp_path / "model.tersor", archive)
    back = tersor.load(tmp_path / "model.tersor", normed())
    name = "parametrizations.weight.original1"
    assert torch.equal(back[0].get_parameter(name), archive.tensor(f"0.{name}"))
    assert isinstance(back[1].weight_factors, FactoredWeight)


def test_a_buffer_that_no_file_has_is_missed_on_the_meta_device(tmp_path):
    class Positions(nn.Linear):
        def __init__(self):
            super().__init__(24, 24)
            self.register_buffer("table", torch.ones(24), persistent=False)

    tersor.save(Positions(), tmp_path / "model.tersor")
    with pytest.raises(InputError, match="table: on the meta device, and the file has no values"):
        tersor.load(tmp_path / "model.tersor", Positions().to("meta"))


def test_tied_weights_stay_tied_on_the_meta_device(tmp_path):
    model = make_net()
    tersor.save(model, tmp_path / "dense.tersor")
    tersor.compress(model, ratio=3)
    tersor.save(model, tmp_path / "model.tersor")
    for file in ("dense.tersor", "model.tersor"):
        with torch.device("meta"):
            back = Net().eval()
        back = tersor.load(tmp_path / file, back)
        assert state(back)["head.weight"] is state(back)["embed.weight"]
        assert not any(t.is_meta for t in back.state_dict().values())
    assert bits(back(IMAGES)) == bits(model(IMAGES))


def test_states_that_hide_tensors_are_refused(tmp_path):
    class Hiding(nn.Linear):
        def get_extra_state(self):
            return (self.weight.detach().char(), "packed")

        def set_extra_state(self, state):
            pass

    with pytest.raises(InputError, match=r"'_extra_state' holds tensors in a tuple"):
        tersor.save(Hiding(4, 4), tmp_path / "model.tersor")


class Final(nn.Linear):
    """Nothing can be derived from it."""

    def __init_subclass__(cls):
        raise TypeError("final")


class Taken(nn.Linear):
    """Has an attribute of the name that its factors would have."""

    def __init__(self):
        super().__init__(24, 24)
        self.weight_factors = nn.Identity()


def test_modules_that_cannot_change_are_refused_and_stay_as_they_were(tmp_path):
    for model, message in ((Final(24, 24), "no subclass can be made"), (Taken(), "rename that")):
        with pytest.raises(InputError, match=message):
            tersor.compress(model, ratio=2)
        assert isinstance(model.weight, nn.Parameter) and model(torch.ones(24)).shape == (24,)
    with pytest.raises(InputError, match="TorchScript"):
        tersor.save(torch.jit.script(nn.Linear(4, 4)), tmp_path / "model.tersor")
    with pytest.raises(InputError, match="run the model once first"):
        tersor.save(nn.LazyLinear(4), tmp_path / "model.tersor")
