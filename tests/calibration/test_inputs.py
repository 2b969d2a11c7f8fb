# SPDX-License-Identifier: Apache-2.0
"""What weights are multiplied by in modules that do more than one product, step by step."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from samples import generator
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import tersor
from tersor import Calibration

INPUTS, HIDDEN, PROJECTED = 18, 20, 16
LENGTHS = (4, 7, 2, 7, 5)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def calibrated(model: nn.Module, batch: Any) -> Calibration:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few vectors
        return tersor.calibrate(model, [batch])


def assert_moments(found: Calibration, vectors: dict[str, list[Tensor]]) -> None:
    assert found.moments.keys() == vectors.keys() and not found.skipped
    for name, several in vectors.items():
        x = torch.cat([v.reshape(-1, v.shape[-1]) for v in several])
        assert found.rows[name] == len(x)
        torch.testing.assert_close(found.moments[name], x.T @ x / len(x), msg=name)


# --- recurrent layers, one sequence and one step at a time


def one_layer(module: nn.RNNBase, name: str, inputs: int) -> nn.RNNBase:
    """A layer of one direction, of its own, with the weights of one in a larger module."""
    options = {"proj_size": module.proj_size} if module.mode == "LSTM" else {}
    options |= {"nonlinearity": module.nonlinearity} if module.mode.startswith("RNN") else {}
    kind = {"LSTM": nn.LSTM, "GRU": nn.GRU}.get(module.mode, nn.RNN)
    layer = kind(inputs, module.hidden_size, bias=module.bias, **options)
    layer.load_state_dict(
        {n: module.state_dict()[n.replace("l0", name)] for n in layer.state_dict()}
    )
    return layer


def unprojected(layer: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor]) -> Tensor:
    """What a layer would return for a step if it projected nothing."""
    probe, parts = copy.deepcopy(layer), []
    for rows in torch.eye(HIDDEN).split(PROJECTED):
        probe.weight_hr_l0.zero_()[: len(rows)] = rows
        parts.append(probe(x[None], state)[0][:, : len(rows)])
    return torch.cat(parts, dim=1)


def walk(
    module: nn.RNNBase, x: Tensor, states: list[Tensor], found: dict[str, list[Tensor]]
) -> None:
    """Note what the weights of all layers get for a sequence (steps, inputs)."""
    number = 0
    for depth in range(module.num_layers):
        outputs = []
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            name = f"l{depth}{suffix}"
            layer = one_layer(module, name, x.shape[1])
            parts = [state[number][None] for state in states]
            after = []
            for step in x.flip(0) if suffix else x:
                found[f"weight_ih_{name}"].append(step)
                found[f"weight_hh_{name}"].append(parts[0])
                state = tuple(parts) if module.mode == "LSTM" else parts[0]
                if module.proj_size:
                    found[f"weight_hr_{name}"].append(unprojected(layer, step, state))
                after.append(layer(step[None], state)[0])
                new = layer(step[None], state)[1]
                parts = list(new) if module.mode == "LSTM" else [new]
            outputs.append(torch.cat(after[::-1] if suffix else after))
            number += 1
        x = torch.cat(outputs, dim=1)


KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
    "relu": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
    "projected": lambda *args, **kwargs: nn.LSTM(*args, proj_size=PROJECTED, **kwargs),
}
FORMS = ("steps first", "batch first", "packed", "one sequence", "states", "packed, states")


@pytest.mark.parametrize("layers, both", [(1, False), (1, True), (2, False), (2, True)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_recurrent_layers(kind, form, layers, both):
    torch.manual_seed(0)
    options = {"batch_first": form == "batch first", "bias": form != "states", "dropout": 0.5}
    options["dropout"] *= layers > 1
    module = KINDS[kind](INPUTS, HIDDEN, layers, bidirectional=both, **options)
    packed = form.startswith("packed")
    sequences = [draw(n if packed else 6, INPUTS, seed=n + i) for i, n in enumerate(LENGTHS)]
    if form == "one sequence":
        sequences = sequences[:1]
    wide = [module.proj_size or HIDDEN, HIDDEN][: 1 + (module.mode == "LSTM")]
    states = [torch.zeros(len(sequences), layers * (1 + both), w) for w in wide]
    if form in ("states", "packed, states", "one sequence"):
        states = [draw(*state.shape, seed=9) / 2 for state in states]
    if packed:
        x = pack_sequence(sequences, enforce_sorted=False)
    else:
        x = torch.stack(sequences, dim=0 if form == "batch first" else 1)
    given = [state.transpose(0, 1).contiguous() for state in states]
    if form == "one sequence":
        x, given = x[:, 0], [state[:, 0] for state in given]
    batch = {"input": x}
    if form in ("states", "packed, states", "one sequence"):
        batch["hx"] = tuple(given) if module.mode == "LSTM" else given[0]
    wanted: dict[str, list[Tensor]] = defaultdict(list)
    for number, sequence in enumerate(sequences):
        walk(module, sequence, [state[number] for state in states], wanted)
    assert_moments(calibrated(module, batch), wanted)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("shape", [(30,), ()])
def test_cells(kind, shape):
    module, x, h = kind(INPUTS, HIDDEN), draw(*shape, INPUTS), draw(*shape, HIDDEN)
    state = (h, h + 1) if kind is nn.LSTMCell else h
    assert_moments(
        calibrated(module, {"input": x, "hx": state}), {"weight_ih": [x], "weight_hh": [h]}
    )
    found = calibrated(module, x)
    assert_moments(found, {"weight_ih": [x], "weight_hh": [0 * h]})
    assert found.unseen == {"weight_hh": "all its inputs were zero"}


def test_an_overridden_forward_is_not_taken_for_that_of_torch():
    class Doubled(nn.GRU):
        def forward(self, x: Tensor) -> Any:
            return super().forward(2 * x)

    found = calibrated(Doubled(INPUTS, HIDDEN), draw(9, 5, INPUTS))
    assert not found.moments
    assert set(found.skipped.values()) == {"used by the Doubled, whose inputs are not measured"}


def test_recurrent_layers_with_factors_are_seen():
    module, x = nn.LSTM(INPUTS, HIDDEN, 2), draw(9, 5, INPUTS)
    tersor.compress(module, ratio=4)
    dense = nn.LSTM(INPUTS, HIDDEN, 2)
    dense.load_state_dict({n: getattr(module, n).detach() for n in dense.state_dict()})
    found, wanted = calibrated(module, x), calibrated(dense, x)
    for name, moments in wanted.moments.items():
        torch.testing.assert_close(found.moments[name], moments)


def test_16_bits_and_autocast_are_computed_in_32():
    module, x = nn.GRU(INPUTS, HIDDEN, 2), draw(9, 5, INPUTS).bfloat16()
    module = module.bfloat16()
    wanted = calibrated(copy.deepcopy(module).float(), x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = calibrated(module, x)
    for name, moments in wanted.moments.items():
        torch.testing.assert_close(found.moments[name], moments)


def test_empty_batches():
    batches = [draw(6, 90, INPUTS), draw(6, 0, INPUTS)]
    found = tersor.calibrate(nn.LSTM(INPUTS, HIDDEN, 2), batches)
    assert set(found.rows.values()) == {540}


# --- attention and products of two inputs


def attention_inputs(module: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What the last layer of attention gets, in the words of the paper; batch first."""
    parts = (
        module.in_proj_weight.chunk(3)
        if module._qkv_same_embed_dim
        else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    )
    triples = zip((q, k, v), parts, module.in_proj_bias.chunk(3), strict=True)
    heads = [
        (x @ w.T + b).unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for x, w, b in triples
    ]
    scores = heads[0] @ heads[1].mT / heads[0].shape[-1] ** 0.5
    return (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)


class Attends(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(32, 4, **options)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.inner(q, k, v)[0]


@pytest.mark.parametrize("first", [True, False])
@torch.no_grad()
def test_attention(first):
    model = Attends(batch_first=first)
    nn.init.normal_(model.inner.in_proj_bias)
    nn.init.normal_(model.inner.out_proj.bias)

    def given(*inputs: Tensor) -> dict[str, Tensor]:
        turned = {id(x): x if first else x.transpose(0, 1) for x in inputs}
        return dict(zip("qkv", (turned[id(x)] for x in inputs), strict=True))

    x, memory = draw(5, 7, 32), draw(5, 9, 32, seed=1)
    for inputs, seen in (((x, x, x), [x]), ((x, memory, memory), [x, memory])):
        wanted = {"inner.in_proj_weight": seen}
        wanted["inner.out_proj.weight"] = [attention_inputs(model.inner, *inputs)]
        assert_moments(calibrated(model, given(*inputs)), wanted)


@torch.no_grad()
def test_attention_of_inputs_of_other_sizes():
    model = Attends(kdim=24, vdim=16, batch_first=True)
    q, k, v = draw(5, 7, 32), draw(5, 9, 24), draw(5, 9, 16)
    wanted = {f"inner.{n}_proj_weight": [x] for n, x in (("q", q), ("k", k), ("v", v))}
    wanted["inner.out_proj.weight"] = [attention_inputs(model.inner, q, k, v)]
    assert_moments(calibrated(model, {"q": q, "k": k, "v": v}), wanted)


class Agreement(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Bilinear(8, 6, 10)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.inner(a, b)


def test_bilinear():
    a, b = draw(4, 50, 8), draw(4, 50, 6, seed=1)
    products = torch.einsum("...i,...j->...ij", a, b).flatten(-2)
    found = calibrated(Agreement(), {"a": a, "b": b})
    assert_moments(found, {"inner.weight": [products]})


# --- what it is good for


class Last(nn.Module):
    """Of a recurrent layer, what it returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


GAINS = {
    "lstm": lambda: Last(nn.LSTM(48, 64, 2, bidirectional=True)),
    "projected": lambda: Last(nn.LSTM(48, 64, 2, proj_size=32)),
    "gru": lambda: Last(nn.GRU(48, 64, 2)),
    "rnn": lambda: Last(nn.RNN(48, 64, 2)),
}


@pytest.mark.parametrize("name", GAINS)
@torch.no_grad()
def test_outputs_for_other_inputs_are_nearer_with_calibration(name):
    torch.manual_seed(0)
    dense = GAINS[name]().eval()
    mix = draw(48, 48, seed=5) * torch.logspace(0, -2, 48)[:, None]

    def inputs(seed: int) -> Tensor:
        return draw(12, 64, 48, seed=seed) @ mix

    calibration = tersor.calibrate(dense, [inputs(seed) for seed in (1, 2)])
    errors, sizes = [], []
    for metric in (None, calibration):
        model = copy.deepcopy(dense)
        sizes.append(tersor.compress(model, ratio=8, calibration=metric).nbytes)
        errors.append(float((model(inputs(3)) - dense(inputs(3))).norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.005)
    assert errors[1] < 0.6 * errors[0]
