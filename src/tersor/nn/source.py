# SPDX-License-Identifier: Apache-2.0
"""Present the tensors of a model as a source to compress or save."""

from __future__ import annotations

import math

from torch import Tensor, nn

from tersor.nn.checks import holding_problem
from tersor.nn.convert import state
from tersor.nn.held import HeldWeight
from tersor.nn.match import aliases_of
from tersor.nn.sites import find_sites
from tersor.storage import dtypes
from tersor.storage.checkpoint import Source


def source_of(model: nn.Module) -> Source:
    """Return the tensors of a model, dense even where it holds factors.

    Buffers, and weights of modules that cannot hold factors, are marked as not to be factored.

    Parameters
    ----------
    model
        Model, dense or factored.

    Raises
    ------
    InputError
        If a tensor cannot be stored.
    """
    entries = state(model)
    for name, value in entries.items():
        if isinstance(value, Tensor):
            dtypes.check(name, value)
    aliases = aliases_of(entries)
    size = sum(nbytes(value) for name, value in entries.items() if name not in aliases)
    sites = find_sites(model)
    factored = (n for n in entries if n in sites and not holding_problem(sites[n]))
    # Tensors that a module computes for its state_dict are unchanged: factors cannot replace them.
    unchanged = entries.keys() - {n for n in factored if entries[n] is sites[n].weight}
    return Source(
        list(entries),
        lambda name: dense(entries[name]),
        size,
        aliases,
        unchanged=frozenset(unchanged),
    )


def dense(value: HeldWeight | Tensor) -> Tensor:
    """Return the dense tensor of a weight, factored or not, on the CPU."""
    if isinstance(value, HeldWeight):
        value = value.to_factors().recompose()
    return value.detach().cpu()


def nbytes(value: HeldWeight | Tensor) -> int:
    """Return the bytes of the dense tensor."""
    if isinstance(value, HeldWeight):
        return math.prod(value.shape) * value.dtype.itemsize
    return value.nbytes if dtypes.is_dense(value) else 0
