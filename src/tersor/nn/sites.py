# SPDX-License-Identifier: Apache-2.0
"""Find the weights of a model, dense or factored, and its buffers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from tersor.nn.held import HeldWeight
from tersor.nn.owner import ORDER, SUFFIX

Weight = nn.Parameter | HeldWeight


class Site(NamedTuple):
    """A use of a weight: an attribute of a module."""

    module: nn.Module
    attribute: str
    weight: Weight


class BufferSite(NamedTuple):
    """A use of a buffer: an attribute of a module."""

    module: nn.Module
    attribute: str
    weight: Tensor


def find_sites(model: nn.Module) -> dict[str, Site]:
    """Return all uses of all weights by their dense names; a tied weight has several."""
    return {n: site for n, site in find_tensors(model).items() if isinstance(site, Site)}


def find_tensors(model: nn.Module) -> dict[str, Site | BufferSite]:
    """Return all uses of all weights and buffers by their dense names, in the dense order.

    Buffers that are not persistent, and so in no file, are included.
    """
    found: dict[str, Site | BufferSite] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, HeldWeight):
            continue
        for name, weight in weights_of(module).items():
            found[join_names(path, name)] = Site(module, name, weight)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                found[join_names(path, name)] = BufferSite(module, name, buffer)
    return found


def weights_of(module: nn.Module) -> dict[str, Weight]:
    """Return a module's own parameters, dense or factored, in the order of the dense module."""
    held = {**module._parameters, **module._modules}
    names = module.__dict__.get(ORDER, module._parameters)
    either = {name: (held.get(name + SUFFIX), held.get(name)) for name in names}
    found = {n: a if isinstance(a, HeldWeight) else b for n, (a, b) in either.items()}
    return {name: weight for name, weight in found.items() if isinstance(weight, Weight)}


def join_names(path: str, name: str) -> str:
    """Return the full name of a parameter in the module at ``path``, which may be empty."""
    return f"{path}.{name}" if path else name
