# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as a torch module whose layers hold its weights; for graphs of convolutions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lib.zoo import store

PACKAGES = ("onnx==1.23.2", "protobuf==7.36.2", "ml_dtypes==0.6.0")

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.truediv,
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Identity": lambda x: x,
    "Clip": lambda x, low, high: x.clamp(float(low), float(high)),
    "GlobalAveragePool": lambda x: x.mean(dim=(2, 3), keepdim=True),
    "HardSigmoid": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "Concat": lambda *x, axis: torch.cat(x, dim=axis),
    "Resize": lambda x, _, scales, **__: F.interpolate(x, scale_factor=scales[2:].tolist()),
}
"""Operators without weights; `Resize` is of nearest neighbours."""


def _onnx() -> ModuleType:
    for package, name in zip(PACKAGES[::-1], ("ml_dtypes", "google.protobuf", "onnx"), strict=True):
        found = store.module(package, name)
    return found


def _convolution(weights: list[Tensor], settings: dict[str, Any], transposed: bool) -> nn.Module:
    weight, bias = weights[0], weights[1] if len(weights) > 1 else None
    groups, pads = settings.get("group", 1), settings.get("pads", [0] * 4)
    assert pads[:2] == pads[2:] and set(settings.get("dilations", [1])) == {1}
    options = {"stride": settings.get("strides", 1), "padding": pads[:2], "groups": groups}
    outputs, inputs = weight.shape[:2]
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    channels = (outputs, inputs * groups) if transposed else (inputs * groups, outputs)
    layer = kind(*channels, weight.shape[2:], bias=bias is not None, **options)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer


def _normalisation(weights: list[Tensor], settings: dict[str, Any]) -> nn.Module:
    layer = nn.BatchNorm2d(len(weights[0]), eps=settings["epsilon"])
    layer.weight.data, layer.bias.data = weights[:2]
    layer.running_mean, layer.running_var = weights[2:]
    return layer


LAYERS: dict[str, Callable[[list[Tensor], dict[str, Any]], nn.Module]] = {
    "Conv": lambda weights, settings: _convolution(weights, settings, False),
    "ConvTranspose": lambda weights, settings: _convolution(weights, settings, True),
    "BatchNormalization": _normalisation,
}


class Graph(nn.Module):
    """The first output of a graph of one input.

    Parameters
    ----------
    path
        Of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        onnx = _onnx()
        model = onnx.load(path)
        read = onnx.numpy_helper.to_array

        def tensor(value: Any) -> Tensor:
            return torch.from_numpy(read(value).copy())

        graph = model.graph
        constants = {t.name: tensor(t) for t in graph.initializer}
        self.source, self.result = graph.input[0].name, graph.output[0].name
        self.steps: list[tuple[Any, tuple[str, ...], str]] = []
        self.layers = nn.ModuleList()
        for node in graph.node:
            settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                constants[node.output[0]] = tensor(settings["value"])
            elif node.op_type in LAYERS:
                weights = [constants[name] for name in node.input[1:]]
                self.layers.append(LAYERS[node.op_type](weights, settings))
                step = len(self.layers) - 1, tuple(node.input[:1]), node.output[0]
                self.steps.append(step)
            else:
                step = (FUNCTIONS[node.op_type], settings), tuple(node.input), node.output[0]
                self.steps.append(step)
        used = reduce(set.union, ({*inputs} for _, inputs, _ in self.steps), set())
        self.constants = {name: t for name, t in constants.items() if name in used}

    def forward(self, x: Tensor) -> Tensor:
        values = {**self.constants, self.source: x, "": None}
        for step, inputs, output in self.steps:
            given = [values[name] for name in inputs]
            if isinstance(step, int):
                values[output] = self.layers[step](*given)
            else:
                function, settings = step
                values[output] = function(*given, **settings)
        return values[self.result]
