# SPDX-License-Identifier: Apache-2.0
"""Find the vectors that the weights of a module are multiplied by when the module is called.

For linear layers and convolutions these are the inputs of the module. Recurrent layers are run
again, step by step, because hooks see neither the inputs of their inner layers nor their states
between the steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from tersor.calibration.moments import Convolution, Layer, inputs_first, inputs_of_layer
from tersor.nn.observe import first_input
from tersor.nn.owner import FactoredOwner
from tersor.nn.sites import Site

Input = tuple[nn.Module, str, Tensor]
"""A module, the name of its weight, and what that is multiplied by: vectors along the last axis, or
what a convolution gets."""

_BLOCK = 2**22
"""Elements of products of two inputs that are made at once: 16 MB."""


MOST_INPUTS = 4096
"""Longest row whose second moments are kept. At this length they take 64 MB."""

_MOST_GROUPED = 2**22
"""Most elements of moments that are kept for each group of a convolution separately."""


def is_layer(module: nn.Module) -> bool:
    """Return whether a module multiplies its input by its weight, and does nothing else."""
    return isinstance(module, Layer) or inputs_first(module)


def is_observable(module: nn.Module, attribute: str) -> bool:
    """Return whether it is known what a weight of a module is multiplied by."""
    if is_layer(module):
        return attribute == "weight"
    return type(module).forward in _READERS and "weight" in attribute


def reason_to_skip(sites: Sequence[Site]) -> str | None:
    """Return why a weight gets no moments, given all its uses; None if it gets them."""
    for module, attribute, weight in sites:
        dense = module.dense_class if isinstance(module, FactoredOwner) else type(module)
        kind = dense.__name__
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            return f"used by the {kind}, whose inputs are no vectors"
        if not is_observable(module, attribute):
            return f"used by the {kind}, whose inputs are not measured"
        if (length := inputs_of_layer(module, weight.shape)) > MOST_INPUTS:
            return f"its rows have {length} inputs, more than {MOST_INPUTS}"
    if len({inputs_first(module) for module, _, _ in sites}) > 1:
        return "used by layers whose inputs run along different axes of it"
    return None


def groups_of(sites: Sequence[Site]) -> int:
    """Return the number of groups with moments of their own; 1 if they share them."""
    modules = [site.module for site in sites]
    groups = {module.groups if isinstance(module, Convolution) else 1 for module in modules}
    inputs = inputs_of_layer(sites[0].module, sites[0].weight.shape)
    largest = max(groups)
    return largest if len(groups) == 1 and largest * inputs**2 <= _MOST_GROUPED else 1


def callers(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return the modules that use the weight of another one without calling it, by that one."""
    return {
        module.out_proj: module
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) and is_observable(module, "in_proj_weight")
    }


def inputs_of(module: nn.Module, *args: Any, **kwargs: Any) -> Iterator[Input]:
    """Yield the tensors that each weight is multiplied by when a module gets these arguments.

    A weight may come several times. The module is in evaluation mode.
    """
    if not is_layer(module):
        yield from _READERS[type(module).forward](module, *args, **kwargs)
    elif (x := first_input(args, kwargs)) is not None:
        yield module, "weight", x


def _bilinear(module: nn.Bilinear, input1: Tensor, input2: Tensor) -> Iterator[Input]:
    rows = max(1, _BLOCK // (module.in1_features * module.in2_features))
    vectors = [x.reshape(-1, x.shape[-1]).float() for x in (input1, input2)]
    for a, b in zip(*(torch.split(x, rows) for x in vectors), strict=True):
        yield module, "weight", (a[:, :, None] * b[:, None]).flatten(1)


def _attention(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    **more: Any,
) -> Iterator[Input]:
    if module._qkv_same_embed_dim:
        for x in {id(x): x for x in (query, key, value)}.values():
            yield module, "in_proj_weight", x
    else:
        for name, x in (("q", query), ("k", key), ("v", value)):
            yield module, f"{name}_proj_weight", x
    # It reads the weight of its last layer: with another in its place, it returns what that gets.
    last = nn.Linear(module.embed_dim, module.embed_dim).to(query)
    last.weight.copy_(torch.eye(module.embed_dim))
    last.bias.zero_()
    twin = copy.copy(module)
    twin._modules = {**module._modules, "out_proj": last}
    yield module.out_proj, "weight", twin.forward(query, key, value, *args, **more)[0]


def _cell(module: nn.RNNCellBase, input: Tensor, hx: Any = None) -> Iterator[Input]:
    yield module, "weight_ih", input
    state = hx[0] if isinstance(module, nn.LSTMCell) and hx is not None else hx
    if state is None:
        state = input.new_zeros(*input.shape[:-1], module.hidden_size)
    yield module, "weight_hh", state


def _recurrent(
    module: nn.RNNBase, input: Tensor | PackedSequence, hx: Any = None
) -> Iterator[Input]:
    steps = _steps(module, input)
    initial = _initial(module, input, hx, len(steps[0]))
    for layer in range(module.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
            order = slice(None, None, -1 if suffix else 1)
            name = f"l{layer}{suffix}"
            before, hidden, after = _unrolled(module, name, steps[order], next(initial))
            yield module, f"weight_ih_{name}", torch.cat(steps)
            yield module, f"weight_hh_{name}", torch.cat(before)
            if module.proj_size:
                yield module, f"weight_hr_{name}", torch.cat(hidden)
            outputs.append(after[order])
        steps = [torch.cat(step, dim=1) for step in zip(*outputs, strict=True)]


def _steps(module: nn.RNNBase, input: Tensor | PackedSequence) -> list[Tensor]:
    """Inputs (n, m) of each step; of sequences of several lengths, the longest first."""
    if isinstance(input, PackedSequence):
        return list(torch.split(input.data.float(), input.batch_sizes.tolist()))
    if input.ndim == 2:
        return list(input.float()[:, None])
    return list(input.float().unbind(1 if module.batch_first else 0))


def _initial(
    module: nn.RNNBase, input: Tensor | PackedSequence, hx: Any, batch: int
) -> Iterator[list[Tensor]]:
    """Initial states, (batch, width) each, of each layer and direction."""
    layers, like = module.num_layers * (1 + module.bidirectional), input.data
    if hx is None:
        widths = [module.proj_size or module.hidden_size, module.hidden_size]
        given = [like.new_zeros(layers, batch, w) for w in widths[: 1 + (module.mode == "LSTM")]]
    else:
        given = list(hx) if module.mode == "LSTM" else [hx]
    states = [(state if state.ndim == 3 else state[:, None]).float() for state in given]
    if isinstance(input, PackedSequence) and input.sorted_indices is not None:
        states = [state.index_select(1, input.sorted_indices) for state in states]
    return (list(of_one) for of_one in zip(*states, strict=True))


def _unrolled(
    module: nn.RNNBase, name: str, steps: Sequence[Tensor], initial: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """For each step the state before it, the one that is projected, and the one after it."""
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    found = [getattr(module, f"{part}_{name}", None) for part in parts]
    weights = [None if weight is None else weight.float() for weight in found]
    before, hidden, after = list[Tensor](), list[Tensor](), list[Tensor]()
    state = [first[:0] for first in initial]
    with torch.autocast(steps[0].device.type, enabled=False):
        for x in steps:
            # Sequences end, or, from the other side, start.
            pairs = zip(state, initial, strict=True)
            state = [torch.cat([old[: len(x)], new[len(old) : len(x)]]) for old, new in pairs]
            before.append(state[0])
            if module.mode == "LSTM":
                hidden.append(_lstm_step(x, state, weights))
            else:
                state[0] = _STEPS[module.mode](x, state[0], *weights[:4])
            after.append(state[0])
    return before, hidden, after


def _lstm_step(x: Tensor, state: list[Tensor], weights: Sequence[Tensor | None]) -> Tensor:
    """Renew the state; returns the output before its projection."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    gates = F.linear(x, cast(Tensor, w_ih), b_ih) + F.linear(state[0], cast(Tensor, w_hh), b_hh)
    entry, forget, update, exit = gates.chunk(4, dim=1)
    state[1] = forget.sigmoid() * state[1] + entry.sigmoid() * update.tanh()
    hidden = exit.sigmoid() * state[1].tanh()
    state[0] = hidden if w_hr is None else F.linear(hidden, w_hr)
    return hidden


_STEPS: dict[str, Callable[..., Tensor]] = {
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
}
"""By ``mode``: input, state and weights -> the next state."""

_READERS: dict[Any, Callable[..., Iterator[Input]]] = {
    **dict.fromkeys([nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward], _recurrent),
    **dict.fromkeys([nn.LSTMCell.forward, nn.GRUCell.forward, nn.RNNCell.forward], _cell),
    nn.MultiheadAttention.forward: _attention,
    nn.Bilinear.forward: _bilinear,
}
"""By the forward whose arguments they take: a class with one of its own may do otherwise."""
