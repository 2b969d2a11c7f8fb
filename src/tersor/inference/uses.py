# SPDX-License-Identifier: Apache-2.0
"""Find the factored weights of a model and the modules that use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor.calibration.samples import call_whole
from tersor.errors import explained
from tersor.nn.absorb import Pairs, find_pairs
from tersor.nn.held import HeldWeight
from tersor.nn.observe import removing
from tersor.nn.sites import Site, find_sites
from tersor.nn.weight import FactoredWeight

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)

_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules that may read the weights of their child modules instead of calling these."""


@dataclass
class Use:
    """All sites of one weight, and facts about them."""

    name: str
    sites: list[Site]
    holder: FactoredWeight
    is_read: bool = False
    """Whether a module above one of the sites reads the weight itself."""
    norm: _BatchNorm | None = None
    """Normalisation layer that the weight's only module could absorb, if there is one."""
    input: Tensor | None = None
    """Input of one of its modules, with which its forms are compared."""
    others: Tensor | None = None
    """Values that are read between two measurements of its forms, to evict the cache."""

    @property
    def is_table(self) -> bool:
        """Whether all its modules are embeddings, which use single rows."""
        return all(isinstance(site.module, nn.Embedding) for site in self.sites)


def uses_of(model: nn.Module) -> list[Use]:
    """Return the weights that are held as factors, in the order of the model."""
    readers = [module for module in model.modules() if isinstance(module, _READERS)]
    read = {child for module in readers for child in module.children()}
    found: dict[HeldWeight, Use] = {}
    for name, site in find_sites(model).items():
        if isinstance(site.weight, FactoredWeight):
            use = found.setdefault(site.weight, Use(name, [], site.weight))
            use.sites.append(site)
            use.is_read |= site.module in read
    return list(found.values())


def learn_pairs(model: nn.Module, uses: Sequence[Use], inputs: Any) -> Pairs:
    """Return the convolutions with the layers that normalise their outputs, and set ``Use.norm``.

    Without inputs no pairs are found.
    """
    pairs = {} if inputs is None else find_pairs(model, lambda: _called(model, inputs))
    for use in uses:
        if len(use.sites) == 1:
            use.norm = pairs.get(use.sites[0].module)
    return pairs


def learn_inputs(model: nn.Module, uses: Sequence[Use], inputs: Any) -> None:
    """Call the model and set ``Use.input`` to the first input of one of the weight's modules."""
    modules: dict[nn.Module, Use] = {
        site.module: use
        for use in uses
        for site in use.sites
        if isinstance(site.module, (*CONVOLUTIONS, nn.Linear, nn.Embedding))
    }
    if inputs is None or not modules:
        return

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if modules[module].input is None and arguments and isinstance(arguments[0], Tensor):
            modules[module].input = arguments[0].detach()

    hooks = [module.register_forward_pre_hook(keep) for module in modules]
    with removing(hooks), torch.inference_mode():
        _called(model, inputs)


def _called(model: nn.Module, inputs: Any) -> Any:
    needed = "give what the model is called with: one tensor, or a tuple of all arguments"
    with explained("the model, called with the inputs,", needed):
        return call_whole(model, inputs)
