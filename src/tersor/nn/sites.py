"""Where a model has its weights, dense or factored, and its buffers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from tersor.nn.held import HeldWeight
from tersor.nn.owner import ORDER, SUFFIX

Weight = nn.Parameter | HeldWeight


class Site(NamedTuple):
    """A place where a weight is used: an attribute of a module."""

    module: nn.Module
    attribute: str
    weight: Weight


class BufferSite(NamedTuple):
    """A place where a buffer is: an attribute of a module."""

    module: nn.Module
    attribute: str
    weight: Tensor


def find_sites(model: nn.Module) -> dict[str, Site]:
    """All uses of all weights by their dense names; a tied weight has several."""
    return {
        join_names(path, name): Site(module, name, weight)
        for path, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, HeldWeight)
        for name, weight in weights_of(module).items()
    }


def find_tensors(model: nn.Module) -> dict[str, Site | BufferSite]:
    """All uses of all weights and buffers by their dense names, buffers in no file included."""
    buffers = {
        join_names(path, name): BufferSite(module, name, buffer)
        for path, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, HeldWeight)
        for name, buffer in module._buffers.items()
        if buffer is not None
    }
    return {**find_sites(model), **buffers}


def weights_of(module: nn.Module) -> dict[str, Weight]:
    """Own parameters of a module, dense or factored, in the order of the dense module."""
    held = {**module._parameters, **module._modules}
    names = module.__dict__.get(ORDER, module._parameters)
    either = {name: (held.get(name + SUFFIX), held.get(name)) for name in names}
    found = {n: a if isinstance(a, HeldWeight) else b for n, (a, b) in either.items()}
    return {name: weight for name, weight in found.items() if isinstance(weight, Weight)}


def join_names(path: str, name: str) -> str:
    """Name of a parameter, of the model itself if the path is empty."""
    return f"{path}.{name}" if path else name
