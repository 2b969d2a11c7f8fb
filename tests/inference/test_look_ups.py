# SPDX-License-Identifier: Apache-2.0
"""Binary matrices: compressed, saved, loaded, and looked up."""

import copy
from importlib import import_module

import pytest
import torch
from torch import nn

import tersor
from tersor.errors import InputError
from tersor.nn import state
from tersor.nn.frozen import DenseWeight, LookupWeight, RecomposedWeight

BOUND = 0.01
"""Documented error of a layer's output in the Frobenius norm, for fewer than 5 vectors."""


class Net(nn.Module):
    """Rows that no tile divides, a convolution, a table, a weight that another module reads."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(60, 100)
        self.conv = nn.Conv1d(100, 100, 3, padding=1)
        self.first = nn.Linear(100, 131)
        self.second = nn.Linear(131, 70, bias=False)
        self.attention = nn.MultiheadAttention(70, 2, batch_first=True)

    def forward(self, tokens):
        x = self.conv(self.table(tokens).transpose(1, 2)).transpose(1, 2)
        x = self.second(torch.relu(self.first(x)))
        return x + self.attention(x, x, x)[0]


TOKENS = torch.arange(40).reshape(2, 20)


def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """File of a model with two layers for look-up kernels."""
    model, path = net(), tmp_path_factory.mktemp("lookup") / "model.tersor"
    tersor.compress(model, bits_per_weight=2.5, lookup=["first.*", "second.*"])
    tersor.save(model, path)
    return path


@pytest.fixture
def loaded(path):
    return tersor.load(path, net())


def error(got, expected):
    return float((got - expected).norm() / expected.norm())


def forms(model):
    return {n: type(w) for n, w in state(model).items() if hasattr(w, "mode")}


def binary(model):
    held = {n: w.to_factors().latent for n, w in state(model).items() if hasattr(w, "to_factors")}
    return {name for name, latent in held.items() if (latent.abs() == 1).all()}


@torch.no_grad()
def test_from_the_model_to_the_file_to_the_look_up(loaded, path):
    expected = loaded(TOKENS)
    assert binary(loaded) == {"first.weight", "second.weight"}
    bits = tersor.inspect(path).nbytes * 8 / sum(p.numel() for p in net().parameters())
    assert 2.3 < bits <= 2.5
    report = tersor.optimize(loaded, "factored")
    found = forms(loaded)
    assert {n for n, form in found.items() if form is LookupWeight} == binary(loaded)
    assert found["attention.in_proj_weight"] is RecomposedWeight
    assert {c.name for c in report.choices if c.mode == "look-up"} == binary(loaded)
    assert "first.weight: look-up, " in str(report)
    assert error(loaded(TOKENS), expected) < BOUND
    # As small as the signs are: two bytes a tile, and a table.
    tile = loaded.first.weight_factors.layout.tile
    codes = 2 * 160 * -(-100 // tile)
    (first,) = [c for c in report.choices if c.name == "first.weight"]
    assert codes < first.nbytes <= codes + 6 * 16 * tile


@torch.no_grad()
@pytest.mark.parametrize(
    "batch, bound", [(1, BOUND), (4, BOUND), (5, BOUND / 10), (50, BOUND / 10)]
)
def test_layers_are_within_the_documented_bound(loaded, batch, bound):
    x = torch.randn(batch, 100, generator=torch.Generator().manual_seed(1))
    expected = loaded.first(x)
    tersor.optimize(loaded, "factored")
    assert error(loaded.first(x), expected) < bound


def test_auto_chooses_by_measurement(loaded, monkeypatch):
    times = {DenseWeight: 3.0, RecomposedWeight: 4.0, LookupWeight: 1.0}

    module = import_module("tersor.inference.optimize")

    monkeypatch.setattr(module, "forward_of", lambda weight, frozen, order: type(frozen))
    monkeypatch.setattr(module, "times", lambda found, _: [times.get(f, 2.0) for f in found])
    monkeypatch.setattr(module, "instructions", lambda: "some")
    lookup = copy.deepcopy(loaded)
    tersor.optimize(lookup)
    assert forms(lookup)["first.weight"] is LookupWeight
    times[LookupWeight] = 9.0
    tersor.optimize(loaded)
    assert forms(loaded)["first.weight"] is not LookupWeight


def test_saved_again_it_is_the_same(loaded, path, tmp_path):
    tersor.optimize(loaded, "factored")
    tersor.save(loaded, tmp_path / "again.tersor")
    before, after = map(tersor.load_state_dict, (path, tmp_path / "again.tersor"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
@pytest.mark.parametrize("native", [True, False])
def test_any_input(loaded, native, monkeypatch):
    if not native:
        monkeypatch.setattr("tersor.kernels.cpu._kernels", None)
    dense = copy.deepcopy(loaded)
    tersor.optimize(loaded, "factored")
    x = torch.randn(3, 8, 100, generator=torch.Generator().manual_seed(2))
    for given in (
        x[:0],
        x[:, :0],
        x[0, 0],
        x.transpose(0, 1),
        x.flip(2).mT.contiguous().mT,
        x[:1, :1].expand(2, 2, 100),
    ):
        got, expected = loaded.first(given), dense.first(given)
        assert got.shape == expected.shape
        assert not got.numel() or error(got, expected) < (BOUND if native else 1e-5)
    half = loaded.to(torch.bfloat16).first(x.bfloat16())
    assert half.dtype == torch.bfloat16 and error(half.float(), dense.first(x)) < 2 * BOUND


def test_compile_and_export(loaded):
    model = nn.Sequential(loaded.first, nn.ReLU(), loaded.second)
    tersor.optimize(loaded, "factored")
    x = torch.randn(3, 100)
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(x), expected)
    assert sum("tersor.linear" in str(n.target) for n in program.graph.nodes) == 2


@torch.no_grad()
def test_tables_of_signs_give_rows(tmp_path):
    model = net()
    tersor.compress(model, bits_per_weight=3, lookup=["table.*"])
    expected = model.table(TOKENS)
    tersor.optimize(model, "factored")
    assert forms(model)["table.weight"] is LookupWeight
    torch.testing.assert_close(model.table(TOKENS), expected)


@torch.no_grad()
def test_a_calibration_makes_them_better():
    dense, x = net(), torch.randn(500, 8) @ torch.randn(8, 100)
    plain, calibrated = copy.deepcopy(dense.first), copy.deepcopy(dense.first)
    seen = tersor.calibrate(dense.first, [x])
    tersor.compress(plain, bits_per_weight=2.5, lookup=["*"])
    tersor.compress(calibrated, bits_per_weight=2.5, lookup=["*"], calibration=seen)
    assert binary(calibrated) == {"weight"}
    wanted = dense.first(x)
    assert error(calibrated(x), wanted) < 0.7 * error(plain(x), wanted)


def test_bits_that_are_given_hold():
    model = net()
    report = tersor.compress(model, ratio=8, bits={"first.*": 1.5}, lookup=["first.*"])
    (first,) = [t for t in report.factored if t.name == "first.weight"]
    assert binary(model) == {"first.weight"}
    assert 1.2 * first.numel < 8 * first.nbytes <= 1.5 * first.numel


@pytest.mark.parametrize("threads", [1, 3])
def test_same_bytes_on_any_number_of_threads(path, threads, tmp_path):
    before, model = torch.get_num_threads(), net()
    try:
        torch.set_num_threads(threads)
        tersor.compress(model, bits_per_weight=2.5, lookup=["first.*", "second.*"])
    finally:
        torch.set_num_threads(before)
    tersor.save(model, tmp_path / "model.tersor")
    assert (tmp_path / "model.tersor").read_bytes() == path.read_bytes()


def test_what_cannot_be_looked_up_is_refused():
    model = net()
    with pytest.raises(InputError, match=r"'conv.\*'.*matches no matrix.*torch.nn.Linear"):
        tersor.compress(model, ratio=8, lookup=["conv.*"])
    with pytest.raises(InputError, match="lookup must be a list of patterns"):
        tersor.compress(model, ratio=8, lookup="first.*")
    with pytest.raises(InputError, match=r"similar names: first\.weight"):
        tersor.compress(model, ratio=8, lookup=["fist.weight"])
    assert all(isinstance(w, torch.Tensor) for w in state(model).values())


def test_signs_stay_signs_in_training(path, tmp_path):
    """Also in a loop of one's own; some change, and all still takes as many bytes."""
    model, size = tersor.load(path, net()), path.stat().st_size
    before = {n: w.to_factors().latent for n, w in state(model).items() if n in binary(model)}
    optimizer = torch.optim.AdamW(tersor.parameter_groups(model, lr=1e-2))
    for _ in range(20):
        model(TOKENS).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        tersor.project(model, optimizer=optimizer)
    tersor.project(model, target_size=size)
    tersor.save(model, tmp_path / "trained.tersor")
    back = tersor.load(tmp_path / "trained.tersor", net())
    assert binary(back) == binary(model) == set(before)
    assert all(not torch.equal(state(back)[n].to_factors().latent, z) for n, z in before.items())
    torch.testing.assert_close(back(TOKENS), model(TOKENS), rtol=0, atol=0)
    assert (tmp_path / "trained.tersor").stat().st_size <= size


def test_signs_alone_can_be_trained(tmp_path):
    model = net()
    tersor.compress(model, ratio=2.4, lookup=["*"], keep=["table.*", "conv.*"])
    size = tersor.save(model, tmp_path / "a.tersor").nbytes
    budget = size + 500  # codebooks may take a few bits more; no latent can make up for them
    options = {"loss": loss_of, "target_size": budget}
    assert tersor.finetune(model, [(TOKENS, TOKENS)], epochs=3, **options).nbytes <= budget
    assert {"first.weight", "second.weight"} <= binary(model)
    with pytest.raises(tersor.BudgetError, match="too few"):
        tersor.finetune(model, [(TOKENS, TOKENS)], loss=loss_of, target_size=size // 2)


def loss_of(output, targets):
    return output.square().mean()
