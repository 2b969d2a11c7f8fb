# SPDX-License-Identifier: Apache-2.0
"""Second moments of the inputs of a whole model."""

from __future__ import annotations

import copy
import warnings
from collections import UserDict

import pytest
import torch
from samples import Net, generator, make_net
from torch import Tensor, nn

import tersor
from tersor import Calibration, InputError
from tersor.calibration import inputs


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def assert_same(a: Calibration, b: Calibration) -> None:
    assert (a.samples, a.rows, a.skipped) == (b.samples, b.rows, b.skipped)
    assert a.moments.keys() == b.moments.keys()
    for name in a.moments:
        torch.testing.assert_close(a.moments[name], b.moments[name])


def test_moments_of_what_reaches_each_layer_in_evaluation_mode():
    model, x = network(), draw(300, 3, 8, 8)
    found = tersor.calibrate(model, x.split(100))
    assert list(found.moments) == ["0.weight", "6.weight"] and not found.skipped
    assert found.samples == 300 and found.rows == {"0.weight": 300 * 64, "6.weight": 300}
    columns = torch.nn.functional.unfold(x, 3, padding=1).movedim(1, 2).reshape(-1, 27)
    torch.testing.assert_close(found.moments["0.weight"], columns.T @ columns / len(columns))
    with torch.no_grad():
        hidden = model.eval()[:-1](x)
    torch.testing.assert_close(found.moments["6.weight"], hidden.T @ hidden / 300)


def test_the_error_of_outputs_follows_from_the_moments():
    layer, x = nn.Linear(20, 30), draw(100, 20) @ draw(20, 20, seed=1)
    error = draw(30, 20, seed=2)
    moments = tersor.calibrate(layer, [x]).moments["weight"]
    torch.testing.assert_close((error @ moments * error).sum(), (x @ error.T).square().sum() / 100)


class Pair(nn.Module):
    """Needs two inputs, and can take a third."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 20), nn.Linear(16, 20)

    def forward(self, left: Tensor, right: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.left(input=left if scale is None else left * scale) + self.right(right)


def test_batches_of_all_kinds():
    model, x, labels = nn.Sequential(nn.Linear(16, 20)), draw(40, 16), torch.zeros(40)
    wanted = tersor.calibrate(model, [x])
    keywords = {"input": x, "labels": labels}
    batches = [(x, labels), [x], keywords, UserDict(keywords), (keywords, labels)]
    for batch in batches:
        assert_same(tersor.calibrate(model, [batch]), wanted)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=20)
    assert_same(tersor.calibrate(model, loader), wanted)
    assert_same(tersor.calibrate(model, iter(loader)), wanted)


def test_as_many_items_as_the_model_takes():
    model, a, b = Pair(), draw(40, 16), draw(40, 16, seed=1)
    scale, labels = torch.full((40, 1), 9.0), torch.arange(40)
    for batch in ((a, b, scale, labels), {"left": a, "right": b, "scale": scale}):
        found = tersor.calibrate(model, [batch])
        torch.testing.assert_close(found.moments["left.weight"], 81 * a.T @ a / 40)
        torch.testing.assert_close(found.moments["right.weight"], b.T @ b / 40)
    found = tersor.calibrate(model, [(a, b)])
    torch.testing.assert_close(found.moments["left.weight"], a.T @ a / 40)


def test_stops_at_the_number_of_samples():
    model, left = nn.Linear(16, 20), iter(draw(100, 16).split(20))
    assert tersor.calibrate(model, left, samples=50).samples == 60
    assert len(list(left)) == 2
    with pytest.raises(InputError, match="must be positive, got 0"):
        tersor.calibrate(model, left, samples=0)


@pytest.mark.parametrize(
    "loader, message",
    [
        ([], "the loader is empty.*tensors, tuples or dicts"),
        ([torch.zeros(0, 16)], "the loader is empty"),
        (torch.zeros(4, 16), r"the loader is a tensor; give a list of batches, such as \[tensor\]"),
        (None, "the loader raised TypeError: 'NoneType' object is not iterable; batches"),
        ([()], "a batch is a tuple without items"),
        (["text"], "a batch is a str; batches that"),
        ([torch.zeros(4, 16).numpy()], "a batch is a ndarray"),
        ([torch.zeros(4, 15)], "called with batch 1 of the loader, raised RuntimeError.*shapes"),
        ([{"x": torch.zeros(4, 16)}], "raised TypeError.*unexpected keyword argument 'x'"),
        ([torch.full((4, 16), torch.nan)], "inputs of the module of 'weight' are NaN"),
        ([torch.full((4, 16), torch.inf)], "inputs of the module of 'weight' are NaN or inf"),
        ([torch.full((4, 16), 1e30)], "squares of the inputs of 'weight' overflow"),
    ],
)
def test_bad_loaders(loader, message):
    model = nn.Linear(16, 20)
    with pytest.raises(InputError, match=message):
        tersor.calibrate(model, loader)
    assert not hooks(model)


def test_a_loader_that_fails_midway():
    def batches():
        yield torch.zeros(4, 16)
        raise KeyError("image 5")

    with pytest.raises(InputError, match="the loader raised KeyError: 'image 5'") as caught:
        tersor.calibrate(nn.Linear(16, 20), batches())
    assert isinstance(caught.value.__cause__, KeyError)


def test_not_a_model():
    with pytest.raises(InputError, match=r"an nn.Module is needed to calibrate, got a dict"):
        tersor.calibrate({}, [])


@pytest.mark.parametrize("x", [draw(300, 3, 8, 8), torch.full((2, 3, 8, 8), torch.nan)])
def test_the_model_is_as_before(x):
    model = network().train()
    model[3].eval()
    before = copy.deepcopy(model.state_dict())
    try:
        tersor.calibrate(model, [x])
    except InputError:
        assert x.isnan().any()
    assert model.training and model[1].training and not model[3].training
    assert not hooks(model) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nan_inside_the_model_is_named():
    model = network()
    model[1].running_var.fill_(-1)
    with pytest.raises(InputError, match=r"'6.weight' are NaN"):
        tersor.calibrate(model, [draw(4, 3, 8, 8)])


class Many(nn.Module):
    """Weights that are shared, unused, too long, or in modules that cannot be observed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.again = self.first
        self.embed = nn.Embedding(20, 16)
        self.head = nn.Linear(16, 20)
        self.head.weight = self.embed.weight
        self.unused = nn.Linear(16, 16)
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.long = nn.Linear(5000, 2)
        self.small = nn.Linear(16, 2)
        self.table = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.again(self.second(self.first(x))) + self.embed.weight[3] @ self.table
        return self.head(self.gru(hidden[:, None])[0][:, 0])


def test_which_weights():
    model, x = Many(), draw(50, 16)
    found = tersor.calibrate(model, [x])
    gru = dict.fromkeys(("gru.weight_ih_l0", "gru.weight_hh_l0"), 50)
    assert found.rows == {"first.weight": 150, **gru} and {*found.moments} == {*found.rows}
    with torch.no_grad():
        seen = [x, model.first(x), model.first(model.first(x))]  # biases are not shared
        seen[1:] = [model.first(x), model.second(model.first(x))]
        total = sum(v.T @ v for v in seen) / 150
    torch.testing.assert_close(found.moments["first.weight"], total)
    reasons = found.skipped
    assert set(reasons) == {"table", "embed.weight", "unused.weight", "long.weight"}
    assert "Embedding" in reasons["embed.weight"]
    assert reasons["unused.weight"] == "no input reached it: its module was not called"
    assert reasons["long.weight"] == "its rows have 5000 inputs, more than 4096"
    assert reasons["table"] == "used by the Many, whose inputs are not measured"


def test_names_are_those_of_compression():
    model = make_net()
    found = tersor.calibrate(model, [draw(200, 3, 6, 6)])
    report = tersor.compress(model, ratio=3, calibration=found)
    factored = {t.name for t in report.factored}
    assert factored <= {*found.moments, *found.skipped} <= {t.name for t in report.tensors}
    assert list(found.moments) == ["conv.weight"] and list(found.skipped) == ["embed.weight"]


def test_a_model_with_factors_is_calibrated_like_the_dense_one():
    model = make_net(kind=Net)
    tersor.compress(model, ratio=3)
    dense = make_net(kind=Net)
    dense.load_state_dict({n: t.clone() for n, t in state_of(model).items()})
    x = draw(200, 3, 6, 6)
    assert_same(tersor.calibrate(model, [x]), tersor.calibrate(dense, [x]))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    from tersor.nn import state
    from tersor.nn.source import dense

    return {name: dense(value) for name, value in state(model).items()}


def test_transformer_layers_are_seen():
    layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    found = tersor.calibrate(model, [draw(10, 7, 16)])
    weights = "linear1.weight linear2.weight self_attn.in_proj_weight self_attn.out_proj.weight"
    assert {f"layers.{i}.{name}" for i in (0, 1) for name in weights.split()} == {*found.moments}
    assert set(found.rows.values()) == {70} and not found.skipped


def test_transformer_layers_with_padding_are_seen():
    layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), draw(10, 7, 16)
    padding = (torch.arange(7) > 4).expand(10, 7)
    found = tersor.calibrate(model, [{"src": x, "src_key_padding_mask": padding}])
    assert set(found.rows.values()) == {70} and torch.backends.mha.get_fastpath_enabled()


def test_groups_have_their_own_moments_unless_that_is_large(monkeypatch):
    model, x = nn.Conv2d(32, 32, 3, padding=1, groups=8), draw(4, 32, 5, 5)
    found = tersor.calibrate(model, [x])
    assert found.moments["weight"].shape == (8, 36, 36) and found.rows == {"weight": 100}
    monkeypatch.setattr(inputs, "_MOST_GROUPED", 8 * 36**2 - 1)
    mean = tersor.calibrate(model, [x])
    assert mean.rows == {"weight": 800}
    torch.testing.assert_close(mean.moments["weight"], found.moments["weight"].mean(0))


# --- regularization


def is_positive_definite(matrix: Tensor) -> bool:
    return not torch.linalg.cholesky_ex(matrix).info.any()


def test_the_ridge_is_one_percent_of_the_mean_diagonal_and_what_samples_leave_open():
    found = tersor.calibrate(nn.Linear(16, 20), [draw(400, 16)])
    moments = found.moments["weight"]
    ridge = (0.01 + 2 * 16 / 400) * moments.diagonal().mean() * torch.eye(16)
    torch.testing.assert_close(found.regularized("weight"), moments + ridge)


def test_fewer_samples_than_inputs_are_said_and_regularized_more():
    with pytest.warns(UserWarning, match=r"1 of 1 weights saw fewer.*'weight': 20 for 200"):
        found = tersor.calibrate(nn.Linear(200, 20), [draw(20, 200)])
    moments = found.moments["weight"]
    assert torch.linalg.matrix_rank(moments) == 20
    regularized = found.regularized("weight")
    assert is_positive_definite(regularized)
    torch.testing.assert_close(
        (regularized - moments).diagonal(), (1.01 * moments.diagonal().mean()).expand(200)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tersor.calibrate(nn.Linear(200, 20), [draw(200, 200)])


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e15])
def test_dead_inputs(scale):
    x = draw(100, 16) * scale
    x[:, 3:6] = 0
    found = tersor.calibrate(nn.Linear(16, 20), [x])
    assert found.moments["weight"][3].eq(0).all()
    assert is_positive_definite(found.regularized("weight"))


@pytest.mark.parametrize("value", [0.0, 1e-22])
def test_all_inputs_dead(value):
    found = tersor.calibrate(nn.Linear(16, 20), [torch.full((40, 16), value)])
    regularized = found.regularized("weight")
    torch.testing.assert_close(regularized, regularized[0, 0] * torch.eye(16))
    assert regularized[0, 0] > 0


def test_dead_groups():
    x = draw(10, 32, 5, 5)
    x[:, 8:16] = 0
    found = tersor.calibrate(nn.Conv2d(32, 64, 3, groups=8), [x])
    regularized = found.regularized("weight")
    assert regularized.shape == (8, 36, 36) and is_positive_definite(regularized)
    ridge = (0.01 + 2 * 36 / 90) * found.moments["weight"].diagonal(dim1=1, dim2=2).mean()
    torch.testing.assert_close(regularized[2], ridge * torch.eye(36))


# --- what the batches say nothing about


class Recurrent(nn.Module):
    """Weights that a state alone reaches: of a layer that is called anyway, and of others."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.output = nn.Linear(32, 32), nn.Linear(32, 32)
        self.hidden, self.other = nn.Linear(32, 32, bias=False), nn.Linear(32, 32)
        self.table = nn.Parameter(torch.randn(32, 32) / 6)
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        h = self.input(x) + self.hidden(torch.zeros_like(x) if state is None else state)
        if state is not None:
            h = h + self.other(state) + state @ self.table
        return self.output(self.norm(h))


def recurrent() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x, state = Recurrent(), torch.randn(400, 32), torch.randn(400, 32)
    with torch.no_grad():
        model(3 * x, state)
    return model.eval(), x, state


REASONS = {
    "table": "noise in it does not change the output",
    "hidden.weight": "all its inputs were zero",
    "other.weight": "no input reached it: its module was not called",
}


@pytest.mark.parametrize("parts", [1, 10])
@pytest.mark.parametrize("output", [None, lambda *_: "no tensors"])
def test_what_was_not_seen_is_said_and_compressed_as_without_calibration(parts, output):
    model, x, state = recurrent()
    with pytest.warns(UserWarning) as caught:
        found = tersor.calibrate(model, x.split(400 // parts), output=output)
    told = " ".join(str(w.message) for w in caught)
    reasons = (
        REASONS if output is None else {n: REASONS[n] for n in ("hidden.weight", "other.weight")}
    )
    assert found.unseen == reasons and not reasons.keys() & found.importance.keys()
    assert all(f"{name!r} ({why})" in told for name, why in reasons.items())
    tersor.compress(model, ratio=8, calibration=found)
    dense = recurrent()[0].state_dict()
    for name, weight in state_of(model).items():
        if name in REASONS:
            assert (weight - dense[name]).norm() < 0.6 * dense[name].norm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tersor.calibrate(recurrent()[0], [{"x": x, "state": state}])
    assert not found.unseen and {"table", "hidden.weight"} <= found.importance.keys()


def test_what_the_output_does_not_depend_on_is_said():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            self.idle(x)
            return self.used(x)

    with pytest.warns(UserWarning, match=r"does not depend on 'idle.weight': few bytes go there"):
        found = tersor.calibrate(Idle(), [draw(200, 32)])
    assert found.unseen == {"idle.weight": "the output does not depend on it"}
    with pytest.warns(UserWarning, match=r"says nothing about 'idle.weight'"):  # not all were tried
        found = tersor.calibrate(Idle(), draw(200, 32).split(40))
    assert "idle.weight" not in found.importance


def test_weights_that_a_module_above_reads_are_not_unseen():
    layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tersor.calibrate(nn.TransformerEncoder(layer, 1).eval(), [draw(10, 7, 16)])
    assert not found.unseen and "layers.0.self_attn.out_proj.weight" in found.importance
