# SPDX-License-Identifier: Apache-2.0
"""A small model for every class of `torch.nn` with parameters, and of Hugging Face's Conv1D."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = torch.arange(12).reshape(3, 4) % 11


def real(*shape: int) -> Tensor:
    """Numbers that are the same in every process."""
    count = torch.Size(shape).numel()
    return torch.linspace(-3, 3, count).sin().mul(7).frac().reshape(shape)


@dataclass(frozen=True)
class Case:
    """A module, and what it is called with.

    Parameters
    ----------
    make
        Makes the module from its class, or a subclass of it, with random weights.
    inputs
        All arguments of its forward.
    kind
        Its class.
    """

    kind: type[nn.Module]
    make: Callable[[Any], nn.Module]
    inputs: tuple[Any, ...]


def hugging_face_conv1d() -> type[nn.Module]:
    """The linear layer of GPT-2, whose weight is transposed."""
    from transformers.pytorch_utils import Conv1D

    return Conv1D


class Stack(nn.Module):
    """Two modules with weights, so that some may be factored and some not."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module
        self.head = nn.Linear(24, 40)

    def forward(self, first: Any, second: Any = None, third: Any = None) -> Tensor:
        result = self.inner(*(x for x in (first, second, third) if x is not None))
        while not isinstance(result, Tensor):  # attention, recurrent layers, named tuples
            result = result[0]
        return result + self.head(result.new_ones(24)).mean()


class Owned(nn.Module):
    """Containers of parameters cannot be called: this one can."""

    def __init__(self, kind: type[nn.ParameterList]) -> None:
        super().__init__()
        self.own = kind([real(20, 16), real(16)])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.own[0] + self.own[1]


class Named(nn.Module):
    """The same with names."""

    def __init__(self, kind: type[nn.ParameterDict]) -> None:
        super().__init__()
        self.own = kind({"matrix": real(20, 16), "shift": real(16)})

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.own["matrix"] + self.own["shift"]


def _norm(kind: type[nn.Module], *shape: int) -> Case:
    return Case(kind, lambda c: c(12, affine=True, track_running_stats=True), (real(*shape),))


CASES: dict[str, Case] = {
    "Linear": Case(nn.Linear, lambda c: c(24, 20), (real(4, 24),)),
    "Linear, no bias": Case(nn.Linear, lambda c: c(24, 20, bias=False), (real(4, 24),)),
    "LazyLinear": Case(nn.LazyLinear, lambda c: c(20), (real(4, 24),)),
    "Bilinear": Case(nn.Bilinear, lambda c: c(8, 9, 10), (real(4, 8), real(4, 9))),
    "Embedding": Case(nn.Embedding, lambda c: c(40, 12, padding_idx=0), (TOKENS,)),
    "Embedding, max_norm": Case(nn.Embedding, lambda c: c(40, 12, max_norm=0.5), (TOKENS,)),
    "EmbeddingBag": Case(nn.EmbeddingBag, lambda c: c(40, 12), (TOKENS,)),
    "EmbeddingBag, max": Case(nn.EmbeddingBag, lambda c: c(40, 12, mode="max"), (TOKENS,)),
    "Conv1d": Case(nn.Conv1d, lambda c: c(8, 16, 5, padding="same"), (real(2, 8, 9),)),
    "Conv1d, long": Case(nn.Conv1d, lambda c: c(1, 12, 64, stride=16), (real(2, 1, 200),)),
    "Conv2d": Case(nn.Conv2d, lambda c: c(6, 16, 3, padding=1), (real(2, 6, 7, 7),)),
    "Conv2d, grouped": Case(
        nn.Conv2d, lambda c: c(16, 16, 3, groups=4, stride=2), (real(2, 16, 7, 7),)
    ),
    "Conv2d, depthwise": Case(nn.Conv2d, lambda c: c(32, 32, 3, groups=32), (real(2, 32, 5, 5),)),
    "Conv2d, circular": Case(
        nn.Conv2d, lambda c: c(6, 16, 3, padding=1, padding_mode="circular"), (real(2, 6, 5, 5),)
    ),
    "Conv3d": Case(nn.Conv3d, lambda c: c(4, 8, 3), (real(1, 4, 4, 4, 4),)),
    "ConvTranspose1d": Case(nn.ConvTranspose1d, lambda c: c(8, 12, 5), (real(2, 8, 5),)),
    "ConvTranspose2d": Case(
        nn.ConvTranspose2d, lambda c: c(8, 12, 3, stride=2, groups=2), (real(2, 8, 5, 5),)
    ),
    "ConvTranspose3d": Case(nn.ConvTranspose3d, lambda c: c(8, 8, 2), (real(1, 8, 3, 3, 3),)),
    "LazyConv1d": Case(nn.LazyConv1d, lambda c: c(16, 5), (real(2, 8, 9),)),
    "LazyConv2d": Case(nn.LazyConv2d, lambda c: c(16, 3), (real(2, 6, 7, 7),)),
    "LazyConv3d": Case(nn.LazyConv3d, lambda c: c(8, 3), (real(1, 4, 4, 4, 4),)),
    "LazyConvTranspose1d": Case(nn.LazyConvTranspose1d, lambda c: c(12, 5), (real(2, 8, 5),)),
    "LazyConvTranspose2d": Case(nn.LazyConvTranspose2d, lambda c: c(12, 3), (real(2, 8, 5, 5),)),
    "LazyConvTranspose3d": Case(nn.LazyConvTranspose3d, lambda c: c(8, 2), (real(1, 8, 3, 3, 3),)),
    "LSTM": Case(nn.LSTM, lambda c: c(10, 12, batch_first=True), (real(2, 5, 10),)),
    "LSTM, two layers, both ways": Case(
        nn.LSTM, lambda c: c(10, 12, 2, bidirectional=True), (real(5, 2, 10),)
    ),
    "LSTM, projected": Case(nn.LSTM, lambda c: c(10, 12, proj_size=6), (real(5, 2, 10),)),
    "GRU": Case(nn.GRU, lambda c: c(10, 12), (real(5, 2, 10),)),
    "GRU, no bias": Case(nn.GRU, lambda c: c(10, 12, bias=False), (real(5, 2, 10),)),
    "RNN": Case(nn.RNN, lambda c: c(20, 16, 2), (real(5, 2, 20),)),
    "LSTMCell": Case(nn.LSTMCell, lambda c: c(10, 12), (real(2, 10),)),
    "GRUCell": Case(nn.GRUCell, lambda c: c(10, 12), (real(2, 10),)),
    "RNNCell": Case(nn.RNNCell, lambda c: c(20, 16), (real(2, 20),)),
    "MultiheadAttention": Case(
        nn.MultiheadAttention, lambda c: c(16, 2), tuple(real(5, 2, 16) + i for i in range(3))
    ),
    "MultiheadAttention, kdim": Case(
        nn.MultiheadAttention,
        lambda c: c(16, 2, kdim=18, vdim=17, add_bias_kv=True),
        (real(5, 2, 16), real(6, 2, 18), real(6, 2, 17)),
    ),
    "TransformerEncoderLayer": Case(
        nn.TransformerEncoderLayer, lambda c: c(16, 2, 20, batch_first=True), (real(2, 5, 16),)
    ),
    "TransformerDecoderLayer": Case(
        nn.TransformerDecoderLayer, lambda c: c(16, 2, 20), (real(5, 2, 16), real(6, 2, 16))
    ),
    "TransformerEncoder": Case(
        nn.TransformerEncoder,
        lambda c: c(nn.TransformerEncoderLayer(16, 2, 20, batch_first=True), 2),
        (real(2, 5, 16),),
    ),
    "TransformerDecoder": Case(
        nn.TransformerDecoder,
        lambda c: c(nn.TransformerDecoderLayer(16, 2, 20), 2),
        (real(5, 2, 16), real(6, 2, 16)),
    ),
    "Transformer": Case(
        nn.Transformer, lambda c: c(16, 2, 1, 1, 20), (real(5, 2, 16), real(6, 2, 16))
    ),
    "AdaptiveLogSoftmaxWithLoss": Case(
        nn.AdaptiveLogSoftmaxWithLoss,
        lambda c: c(16, 40, [10, 20]),
        (real(12, 16), torch.arange(12) * 3),
    ),
    "BatchNorm1d": _norm(nn.BatchNorm1d, 4, 12),
    "BatchNorm2d": _norm(nn.BatchNorm2d, 2, 12, 3, 3),
    "BatchNorm3d": _norm(nn.BatchNorm3d, 2, 12, 3, 3, 3),
    "SyncBatchNorm": _norm(nn.SyncBatchNorm, 2, 12, 3, 3),
    "InstanceNorm1d": _norm(nn.InstanceNorm1d, 2, 12, 5),
    "InstanceNorm2d": _norm(nn.InstanceNorm2d, 2, 12, 3, 3),
    "InstanceNorm3d": _norm(nn.InstanceNorm3d, 2, 12, 3, 3, 3),
    "LazyBatchNorm1d": Case(nn.LazyBatchNorm1d, lambda c: c(), (real(4, 12),)),
    "LazyBatchNorm2d": Case(nn.LazyBatchNorm2d, lambda c: c(), (real(2, 12, 3, 3),)),
    "LazyBatchNorm3d": Case(nn.LazyBatchNorm3d, lambda c: c(), (real(2, 12, 3, 3, 3),)),
    "LazyInstanceNorm1d": Case(nn.LazyInstanceNorm1d, lambda c: c(affine=True), (real(2, 12, 5),)),
    "LazyInstanceNorm2d": Case(
        nn.LazyInstanceNorm2d, lambda c: c(affine=True), (real(2, 12, 3, 3),)
    ),
    "LazyInstanceNorm3d": Case(
        nn.LazyInstanceNorm3d, lambda c: c(affine=True), (real(2, 12, 3, 3, 3),)
    ),
    "GroupNorm": Case(nn.GroupNorm, lambda c: c(3, 12), (real(2, 12, 5),)),
    "LayerNorm": Case(nn.LayerNorm, lambda c: c((4, 12)), (real(2, 4, 12),)),
    "LayerNorm, large": Case(nn.LayerNorm, lambda c: c((20, 30)), (real(2, 20, 30),)),
    "RMSNorm": Case(nn.RMSNorm, lambda c: c(12), (real(2, 4, 12),)),
    "PReLU": Case(nn.PReLU, lambda c: c(12), (real(2, 12, 5),)),
    "ParameterList": Case(nn.ParameterList, Owned, (real(3, 20),)),
    "ParameterDict": Case(nn.ParameterDict, Named, (real(3, 20),)),
    "Conv1D of transformers": Case(
        nn.Module, lambda c: hugging_face_conv1d()(20, 24), (real(3, 24),)
    ),
}

if hasattr(nn, "LinearCrossEntropyLoss"):  # since torch 2.13
    CASES["LinearCrossEntropyLoss"] = Case(
        nn.LinearCrossEntropyLoss, lambda c: c(16, 20), (real(6, 16), torch.arange(6))
    )

BASES = {"RNNBase", "RNNCellBase"}
"""Classes that own parameters, but are never called themselves."""

_BUILDS = re.compile(
    r"\b(Parameter|UninitializedParameter|Linear|MultiheadAttention|_get_clones)\("
)


def owners() -> set[str]:
    """Names of the classes of `torch.nn` whose constructors make parameters, or modules that do."""
    modules = (
        (name, kind)
        for name, kind in inspect.getmembers(nn, inspect.isclass)
        if issubclass(kind, nn.Module) and kind is not nn.Module
    )
    return {name for name, kind in modules if any(map(_makes_parameters, kind.__mro__))}


def _makes_parameters(kind: type) -> bool:
    own = kind.__dict__.get("__init__")
    return kind not in (nn.Module, object) and bool(own and _BUILDS.search(inspect.getsource(own)))
