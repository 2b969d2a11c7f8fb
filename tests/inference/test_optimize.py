# SPDX-License-Identifier: Apache-2.0
"""`tersor.optimize`: forms of weights, chosen by time and memory, in models of all kinds."""

import copy
import io
from importlib import import_module

import pytest
import torch
from torch import nn

import tersor
from tersor import kernels
from tersor.errors import BudgetError, InputError
from tersor.factors import Factors
from tersor.nn import insert_factors
from tersor.nn.convolution import LastWeight, TiledWeight
from tersor.nn.frozen import DenseWeight, FrozenWeight, PackedWeight, RecomposedWeight


class Net(nn.Module):
    """Every kind of layer: a table tied to a head, a convolution, attention, a recurrence."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32, padding_idx=0)
        self.conv = nn.Conv1d(32, 32, 3, padding=1)
        self.block = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        self.recurrent = nn.GRU(32, 32, batch_first=True)
        self.linear = nn.Linear(32, 32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.conv(self.embed(tokens).transpose(1, 2)).transpose(1, 2)
        x = self.recurrent(self.block(x))[0]
        return self.head(torch.relu(self.linear(x)))


TOKENS = torch.arange(40).reshape(2, 20)


def factors_of(weight, seed):
    draw = torch.Generator().manual_seed(seed)
    rows, row = weight.shape[0], weight[0].numel()
    d = min(8, row)
    latent = torch.randint(-3, 4, (d, rows * -(-row // d)), generator=draw, dtype=torch.int16)
    codebook = torch.randint(-20, 21, (d, d), generator=draw, dtype=torch.int16)
    return Factors(codebook, latent, 2e-3, tuple(weight.shape))


def compressed():
    torch.manual_seed(0)
    model = Net().eval()
    weights = {n: w for n, w in model.named_parameters() if w.ndim >= 2}
    insert_factors(model, {n: factors_of(w, i) for i, (n, w) in enumerate(weights.items())})
    return model


def frozen(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, FrozenWeight)}


def error(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("mode", ["auto", "dense", "recompose", "factored"])
def test_output_stays(mode):
    model = compressed()
    expected = model(TOKENS).detach()
    report = tersor.optimize(model, mode)
    assert error(model(TOKENS), expected) < (1e-6 if mode in ("dense", "recompose") else 0.02)
    assert len(report.choices) == 9 and report.nbytes == sum(
        weight.nbytes for weight in set(frozen(model).values())
    )
    assert "embed.weight: " in str(report)
    assert not [p for p in model.parameters() if p.ndim >= 2]


def test_modes_give_the_forms_that_they_name():
    forms = {"dense": DenseWeight, "recompose": RecomposedWeight}
    for mode, form in forms.items():
        model = compressed()
        tersor.optimize(model, mode)
        assert all(type(weight) is form for weight in frozen(model).values())
    model = compressed()
    tersor.optimize(model, "factored")
    packed = {n for n, w in frozen(model).items() if isinstance(w, PackedWeight)}
    # The transformer block reads its weights itself, so that they had to be multiplied out.
    assert packed == {"embed.weight_factors", "linear.weight_factors"}
    assert model.head.weight_factors is model.embed.weight_factors


@pytest.mark.parametrize("mode", ["recompose", "factored"])
def test_files_are_the_same_as_before(mode, tmp_path):
    model = compressed()
    tersor.save(model, tmp_path / "before.tersor")
    tersor.optimize(model, mode)
    tersor.save(model, tmp_path / "after.tersor")
    before, after = (
        tersor.load_state_dict(tmp_path / f"{name}.tersor") for name in ("before", "after")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_dense_weights_cannot_be_saved_as_factors(tmp_path):
    model = compressed()
    tersor.optimize(model, "dense")
    with pytest.raises(InputError, match="save the model before"):
        tersor.save(model, tmp_path / "model.tersor")


@pytest.mark.parametrize("mode", ["dense", "recompose", "factored"])
def test_copies_and_state(mode):
    model = compressed()
    tersor.optimize(model, mode)
    expected = model(TOKENS)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(TOKENS), expected)
        for weight in other.buffers():
            weight.zero_()
        assert torch.equal(model(TOKENS), expected)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(TOKENS), expected)
        other.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
        assert torch.equal(other(TOKENS), expected)


@pytest.mark.parametrize(
    "damage",
    [
        {"escapes": lambda part: part | 255},
        {"starts": lambda part: part + 1},
        {"starts": lambda part: part.clamp(max=1)},
        {"starts": lambda part: part.flip(0) - part[-1]},
        {"starts": lambda part: torch.cat([part[:1], part[2:].flip(0), part[-1:]])},
        {"escapes": lambda part: part[:-1]},
        {"codes": lambda part: part[:, :1].expand_as(part)},
    ],
)
@pytest.mark.parametrize("assign", [False, True])
def test_a_damaged_state_is_refused(damage, assign):
    """Kernels write where it says; nothing of it is taken."""
    model, x = nn.Linear(64, 48).eval(), torch.randn(9, 64)
    factors = factors_of(model.weight, 0)
    factors.latent[0, ::7] = 300
    insert_factors(model, {"weight": factors})
    tersor.optimize(model, "factored")
    expected = model(x)
    state = copy.deepcopy(model.state_dict())
    for name, change in damage.items():
        state["weight_factors." + name] = change(state["weight_factors." + name])
    with pytest.raises(InputError, match="packed tensor"):
        model.load_state_dict(state, assign=assign)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("mode", ["dense", "recompose", "factored"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_data_type_follows_the_module(mode, dtype):
    model = compressed()
    expected = model(TOKENS).detach()
    tersor.optimize(model, mode)
    got = model.to(dtype)(TOKENS)
    assert got.dtype == dtype and error(got.float(), expected) < 0.1


@pytest.mark.parametrize("mode", ["dense", "factored"])
def test_compile_and_export(mode):
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8)).eval()
    insert_factors(model, {f"{i}.weight": factors_of(model[i].weight, i) for i in (0, 2)})
    tersor.optimize(model, mode)
    x = torch.randn(3, 32)
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(x), expected)
    wanted = mode == "factored"
    assert any("tersor.linear" in str(n.target) for n in program.graph.nodes) is wanted


@pytest.mark.parametrize("x", [torch.ones(3, 31), torch.tensor(1.0), torch.ones(3, 32).long()])
def test_inputs_that_do_not_fit_a_packed_layer(x):
    model = nn.Linear(32, 48).eval()
    insert_factors(model, {"weight": factors_of(model.weight, 0)})
    tersor.optimize(model, "factored")
    with pytest.raises(InputError, match="real numbers, 32 in the last axis"):
        model(x)


@pytest.mark.parametrize("default", ["float64", "meta"])
def test_defaults_of_torch_do_not_matter(default):
    model, index = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 48)).eval(), torch.arange(9)
    weights = {n: w for n, w in model.named_parameters() if w.ndim == 2}
    insert_factors(model, {n: factors_of(w, 0) for n, w in weights.items()})
    tersor.optimize(model, "factored")
    model.requires_grad_(False)
    expected = model(index)
    if default == "meta":
        with torch.device("meta"):
            got = model(index)
    else:
        torch.set_default_dtype(torch.float64)
        try:
            got = model(index)
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(got, expected)


def test_memory_is_a_limit():
    sizes = {mode: tersor.optimize(compressed(), mode).nbytes for mode in ("dense", "factored")}
    for memory in (sizes["factored"] + 3000, sizes["dense"] // 2, f"{sizes['dense']}B"):
        report = tersor.optimize(compressed(), memory=memory)
        assert report.nbytes <= int(str(memory).removesuffix("B"))
    model = compressed()
    with pytest.raises(BudgetError, match="at least"):
        tersor.optimize(model, memory=100)
    assert not frozen(model)


def test_few_large_integers_do_not_make_all_large():
    factors = factors_of(torch.empty(40, 64), 0)
    for wide, size in ((0, 1), (5, 1), (200, 2)):
        factors.latent[0, :wide] = 1000
        weight = RecomposedWeight(factors, torch.float32)
        assert weight.latent.element_size() == size
        assert torch.equal(weight(), factors.recompose())
        assert torch.equal(weight.to_factors().latent, factors.latent)
        assert torch.equal(weight.to(torch.bfloat16)(), factors.recompose().bfloat16())


def test_embeddings_refuse_what_is_out_of_range():
    model = compressed()
    tersor.optimize(model, "factored")
    for wrong in (50, -1):
        with pytest.raises(IndexError):
            model.embed(torch.tensor([3, wrong]))
    rows = model.embed(torch.tensor([[3, 49]], dtype=torch.int32))
    assert torch.equal(rows[0], model.embed.weight[torch.tensor([3, 49])])


def test_inputs_are_what_the_forms_are_measured_with(monkeypatch):
    seen = []
    linear = PackedWeight.linear
    monkeypatch.setattr(
        PackedWeight, "linear", lambda self, x, bias: seen.append(x.shape) or linear(self, x, bias)
    )
    tersor.optimize(compressed(), inputs=TOKENS)
    assert set(seen) == ({(2, 20, 32)} if kernels.instructions() else set())


@pytest.mark.parametrize("last", [True, False])
def test_convolutions_are_chosen_for_one_order_of_images(last, monkeypatch):
    """Not each for its own: what the others give would have to be put into another order."""
    module = import_module("tersor.inference.optimize")
    times = {
        (LastWeight, torch.channels_last): 1.0,
        (TiledWeight, torch.contiguous_format): 1.5 if last else 0.9,
        (DenseWeight, torch.contiguous_format): 1.2 if last else 1.0,
    }
    monkeypatch.setattr(module, "forward_of", lambda _, frozen, order: (type(frozen), order))
    monkeypatch.setattr(module, "times", lambda found, _: [times.get(f, 9.0) for f in found])
    monkeypatch.setattr(module, "instructions", lambda: "some")
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3, stride=2)).eval()
    weights = {n: w for n, w in model.named_parameters() if w.ndim == 4}
    insert_factors(model, {n: factors_of(w, 0) for n, w in weights.items()})
    report = tersor.optimize(model)
    found = [type(layer.weight_factors) for layer in model]
    assert found == ([LastWeight] * 2 if last else [TiledWeight, DenseWeight])
    assert [choice.seconds for choice in report.choices] == ([1.0] * 2 if last else [0.9, 1.0])


def test_without_native_kernels(monkeypatch):
    monkeypatch.setattr("tersor.kernels.cpu._kernels", None)
    assert kernels.instructions() == ""
    model = compressed()
    expected = model(TOKENS).detach()
    tersor.optimize(model, "factored")
    assert error(model(TOKENS), expected) < 1e-5


def test_padding_still_gets_no_gradient():
    model = compressed()
    model.embed(torch.tensor([0])).sum().backward()
    assert not model.embed.weight_factors.latent.grad.any()


def test_bad_input():
    with pytest.raises(InputError, match=r"'fast'.*auto.*dense.*recompose.*factored"):
        tersor.optimize(compressed(), "fast")
    with pytest.raises(InputError, match="holds no factors"):
        tersor.optimize(nn.Linear(2, 2))
    with pytest.raises(InputError, match="mode="):
        tersor.optimize(compressed(), "dense", memory="1MB")
    model = compressed()
    tersor.optimize(model)
    with pytest.raises(InputError, match="holds no factors"):
        tersor.optimize(model)
    with pytest.raises(IndexError):
        model.embed(torch.tensor([50]))
