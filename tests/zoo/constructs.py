# SPDX-License-Identifier: Apache-2.0
"""What PyTorch lets models do with their parameters, each in a small model."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import torch
from family import Family, Inputs, image
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

SIZE = 24

STAYS = "a weight stays as it is, uncompressed: .*parametrization.*remove that first"
"""Of a module that computes its weight from others."""


class Called(nn.Module):
    """Modules that are called one after the other."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Any:
        for part in self.parts:
            x = part(x)
        return x


class Shared(nn.Module):
    """An embedding and a linear layer of one weight, and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(80, SIZE)
        self.first = self.second = nn.Linear(SIZE, SIZE)
        self.head = nn.Linear(SIZE, 80, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.head(self.first(self.second(self.embed(x))))
        return hidden


class Owner(nn.Module):
    """Parameters of the model itself, singly and in containers, and buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SIZE, SIZE))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.register_parameter("absent", None)
        self.several = nn.ParameterList([torch.randn(SIZE, SIZE), torch.randn(SIZE)])
        self.named = nn.ParameterDict({"a/b": torch.randn(SIZE, SIZE), "weight": torch.ones(SIZE)})
        self.frozen = nn.Parameter(torch.randn(SIZE, SIZE), requires_grad=False)
        self.counts = nn.Parameter(torch.arange(30), requires_grad=False)
        self.register_buffer("table", torch.randn(SIZE, SIZE))
        self.register_buffer("derived", torch.linspace(0, 1, SIZE), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x @ self.weight) @ self.several[0] + self.several[1] * self.scalar
        hidden = hidden @ self.named["a/b"] * self.named["weight"] @ self.frozen
        return (hidden + self.derived) @ self.table + self.counts.sum()


class Spectral(nn.Module):
    """Complex weights, as Fourier layers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Parameter(torch.randn(8, SIZE, dtype=torch.complex64))
        self.linear = nn.Linear(8, 64)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.linear((x.to(torch.complex64) @ self.spectrum.mT).real)
        return hidden


class Marked(nn.Parameter):
    """A parameter of a class of its own, as training frameworks have them."""


class MarkedLinear(nn.Linear):
    """A layer whose weight is one."""

    def __init__(self) -> None:
        super().__init__(SIZE, SIZE)
        self.weight = Marked(self.weight.data)


class Tagged(nn.Linear):
    """A layer with extra state, for which it makes a tensor."""

    def __init__(self) -> None:
        super().__init__(SIZE, SIZE)
        self.tag = float(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.tag

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.tag)

    def set_extra_state(self, state: Tensor) -> None:
        self.tag = float(state)


class Copying(nn.Linear):
    """A layer whose state_dict has copies of its parameters."""

    def __init__(self) -> None:
        super().__init__(SIZE, SIZE)
        with torch.no_grad():
            self.weight.mul_(1 + torch.rand(()))
            self.bias.add_(torch.rand(()))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._parameters:
            destination[prefix + name] = destination[prefix + name].clone()


class Names(nn.Module):
    """Names as they are seldom chosen."""

    def __init__(self) -> None:
        super().__init__()
        names = ["weight", "weight_factors", "ümlaut", "a b", "0", "layer_1-x/y", "parts/0/weight"]
        self.layers = nn.ModuleDict({name: nn.Linear(SIZE, SIZE) for name in names})
        self.kernel = nn.Parameter(torch.randn(SIZE, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = x + layer(x)
        return x @ self.kernel


class Transposed(nn.Module):
    """A parameter that is the transpose of another, in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE)
        self.back = nn.Parameter(self.linear.weight.data.t())

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.linear(x)
        return hidden @ self.back.t()


class Abstract(nn.Module, abc.ABC):
    """A class with a metaclass."""

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """To be computed."""


class Concrete(Abstract):
    """Owns a parameter that is not called weight."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(SIZE, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel


class Symmetric(nn.Module):
    """A parametrization without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


class Scaled(nn.Module):
    """A parametrization with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(SIZE))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def linear() -> nn.Linear:
    """A layer that can be factored."""
    return nn.Linear(SIZE, SIZE)


def nested() -> nn.Module:
    """A layer with two parametrizations, one upon the other."""
    layer = linear()
    parametrize.register_parametrization(layer, "weight", Symmetric())
    parametrize.register_parametrization(layer, "weight", Scaled())
    return layer


def pruned() -> nn.Module:
    """A layer half of whose weights are masked."""
    return prune.l1_unstructured(linear(), "weight", 0.5)  # type: ignore[no-any-return]


def without_pruning() -> nn.Module:
    """The same once the mask is applied for good."""
    return prune.remove(pruned(), "weight")  # type: ignore[no-any-return]


def without_weight_norm() -> nn.Module:
    """A layer that had a parametrization, which was removed."""
    layer = parametrizations.weight_norm(linear())
    return parametrize.remove_parametrizations(layer, "weight")


def called_once() -> nn.Module:
    """A lazy layer that knows its size."""
    layer = nn.LazyLinear(SIZE)
    layer(torch.ones(1, SIZE))
    return layer


def sequential_with_parameter() -> nn.Module:
    """Has a parameter beside its layers."""
    model = nn.Sequential(nn.ReLU())
    model.register_parameter("scale", nn.Parameter(torch.randn(SIZE, SIZE)))
    return model


def vectors() -> dict[str, Any]:
    return {"x": torch.randn(4, SIZE)}


def traceable() -> dict[str, Any]:
    return {"input": torch.randn(4, SIZE)}


def pictures() -> dict[str, Any]:
    return {"x": image(9)}


def words() -> dict[str, Any]:
    return {"x": torch.randint(0, 80, (2, 7))}


def half_vectors() -> dict[str, Any]:
    return {"x": torch.randn(4, SIZE).half()}


def construct(
    build: Callable[[], nn.Module],
    inputs: Inputs = vectors,
    warned: str | None = None,
    refused: str | None = None,
    ratio: float = 2.5,
    dense_tolerance: float = 1e-5,
) -> Family:
    """A small model of torch alone."""
    return Family(build, inputs, "torch", "", warned, refused, ratio, dense_tolerance)


def beside(layer: Callable[[], nn.Module]) -> Family:
    """A layer that cannot hold factors, between two that can."""
    return construct(lambda: Called(linear(), layer(), linear()), warned=STAYS, ratio=1.5)


CONSTRUCTS: dict[str, Family] = {
    "weight_norm, parametrization": beside(lambda: parametrizations.weight_norm(linear())),
    "weight_norm, hook": beside(lambda: nn.utils.weight_norm(linear())),
    "weight_norm, removed": construct(lambda: Called(without_weight_norm())),
    "weight_norm alone": construct(
        lambda: Called(parametrizations.weight_norm(linear())), refused="remove that first"
    ),
    "spectral_norm, parametrization": beside(lambda: parametrizations.spectral_norm(linear())),
    "spectral_norm, hook": beside(lambda: nn.utils.spectral_norm(linear())),
    "orthogonal parametrization": beside(lambda: parametrizations.orthogonal(linear())),
    "nested parametrizations": beside(nested),
    "pruning": beside(pruned),
    "pruning, removed": construct(lambda: Called(without_pruning())),
    "tied weights of two kinds of layers": construct(Shared, words),
    # Its tensors differ in the file, of which torch keeps the last.
    "transpose in the same memory": construct(Transposed, dense_tolerance=0.1),
    "parameters of the model itself": construct(Owner, ratio=2),
    "complex parameters": construct(Spectral, ratio=1.2),
    "a class of parameters": construct(lambda: Called(MarkedLinear())),
    "tensor as extra state": construct(lambda: Called(Tagged())),
    "state_dict with copies": construct(lambda: Called(linear(), Copying()), ratio=1.2),
    "odd names": construct(Names),
    "abstract class": construct(Concrete),
    "no bias": construct(lambda: Called(nn.Linear(SIZE, SIZE, bias=False))),
    "lazy, called once": construct(lambda: Called(called_once())),
    "channels_last": construct(
        lambda: Called(nn.Conv2d(3, 16, 3)).to(memory_format=torch.channels_last), pictures
    ),
    "embedding with max_norm": construct(lambda: Called(nn.Embedding(80, SIZE, max_norm=1)), words),
    "embedding with sparse gradients": construct(
        lambda: Called(nn.Embedding(80, SIZE, sparse=True)), words, refused="sparse to False"
    ),
    "parameter of a Sequential": construct(
        sequential_with_parameter, traceable, refused="a module of its own"
    ),
    "half precision": construct(lambda: Called(linear()).half(), half_vectors, ratio=1.5),
    "averaged (EMA)": construct(lambda: torch.optim.swa_utils.AveragedModel(Called(linear()))),
    "DataParallel": construct(lambda: nn.DataParallel(Called(linear()))),
    "torch.compile": construct(lambda: torch.compile(Called(linear()), backend="eager")),
    "torch.fx": construct(
        lambda: torch.fx.symbolic_trace(nn.Sequential(linear(), nn.ReLU())), traceable
    ),
}
"""By name."""
