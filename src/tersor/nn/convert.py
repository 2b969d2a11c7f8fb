# SPDX-License-Identifier: Apache-2.0
"""Replace dense weights of a model by factors, named as in the dense model's ``state_dict``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tersor.errors import InputError
from tersor.factors import Factors
from tersor.nn.checks import (
    check_model,
    check_references,
    check_site,
    check_weight,
    explain_unknown,
)
from tersor.nn.held import HeldWeight
from tersor.nn.owner import SUFFIX, attach, forget
from tersor.nn.sites import BufferSite, Site, Weight, find_sites, find_tensors
from tersor.nn.weight import FactoredWeight
from tersor.storage import dtypes
from tersor.storage.checkpoint import shared


def insert_factors(model: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Replace weights of a model by factors, in place; the dense weights are freed.

    Modules keep their identity, hooks, training flag and device. The factors keep the weight's data
    type, and are trained if the weight was. If any of the factors does not fit, nothing is changed.
    The parameters are new, so make optimizers and DDP wrappers afterwards.

    Parameters
    ----------
    model
        Model on any device, of any floating-point type.
    factors
        Factors by the names of the parameters in the dense model's ``state_dict``. One name of a
        tied weight is enough: all its sites then share one `FactoredWeight`.

    Raises
    ------
    InputError
        If a name is unknown, a shape does not fit, or a module cannot hold factors.
    """
    places = replaceable(model, {name: value.shape for name, value in factors.items()})
    chosen: dict[Weight, tuple[list[Site], Factors]] = {}
    for name, value in factors.items():
        if chosen.setdefault(places[name][0].weight, (places[name], value))[1] is not value:
            raise InputError(
                f"{name!r} is tied to another of these weights, but they got different factors; "
                "give the same object for both, or one of the names only"
            )
    for sites, value in chosen.values():
        replace_weight(sites, value)


def replaceable(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Site]]:
    """Return all sites of the weights of these names, after checking that factors can replace them.

    Parameters
    ----------
    model
        Model, which is not changed.
    shapes
        Shapes of the weights that the factors recompose to, by name.

    Returns
    -------
    dict
        The sites of each weight, by the given names.

    Raises
    ------
    InputError
        If a name is unknown, a shape does not fit, or a module cannot hold factors.
    """
    check_model(model)
    sites = find_sites(model)
    if unknown := [name for name in shapes if name not in sites]:
        raise InputError(explain_unknown(model, unknown[0], sites))
    wanted = {sites[name].weight: shape for name, shape in shapes.items()}
    uses: dict[Weight, list[Site]] = {}
    for name, site in sites.items():
        if site.weight in wanted:
            check_weight(name, site.weight, wanted[site.weight])
            check_site(name, site)
            uses.setdefault(site.weight, []).append(site)
    check_references(model, uses)
    return {name: uses[sites[name].weight] for name in shapes}


def replace_weight(
    sites: list[Site], factors: Factors, dtype: torch.dtype | None = None
) -> FactoredWeight:
    """Replace one weight by factors at all its sites, and return the module that holds them.

    Parameters
    ----------
    sites
        All sites of the weight. The list is emptied, so that the dense weight is freed before
        memory is allocated for its factors.
    factors
        The factors. If the weight is on the meta device and so has no values, they stay on their
        own device.
    dtype
        Data type of the new weight; by default that of the old one.
    """
    weight = sites[0].weight
    like = weight.codebook if isinstance(weight, FactoredWeight) else weight
    dtype, device = dtype or weight.dtype, None if like.is_meta else like.device
    requires_grad = isinstance(like, Tensor) and like.requires_grad
    owners = [(site.module, site.attribute) for site in sites]
    sites.clear()
    del weight, like
    for module, name in owners:
        forget(module, name)
    holder = FactoredWeight(factors, dtype=dtype, device=device, requires_grad=requires_grad)
    for module, name in owners:
        attach(module, name, holder)
    return holder


def state(model: nn.Module) -> dict[str, HeldWeight | Tensor]:
    """Return the content of a model, dense or factored, named as in the dense ``state_dict``.

    Parameters
    ----------
    model
        Model, with factors or without.

    Returns
    -------
    dict
        The `HeldWeight` of each factored weight; otherwise the parameters and persistent buffers
        themselves, in the order of the dense model. Names of one tied weight have the same object,
        or tensors of the same storage. Tensors that modules compute for their ``state_dict``, such
        as extra state, are included; other objects are left out, with a warning.

    Raises
    ------
    InputError
        If a module's extra state is an object that holds tensors.
    """
    return survey(model)[0]


def survey(
    model: nn.Module,
) -> tuple[dict[str, HeldWeight | Tensor], dict[str, Site | BufferSite]]:
    """Return the `state` of a model, and all uses of its weights and buffers (`find_tensors`)."""
    tensors, found = model.state_dict(), find_tensors(model)
    entries: dict[str, HeldWeight | Tensor] = {}
    for name, site in found.items():
        value = site.weight
        if isinstance(value, HeldWeight):
            entries[name] = value
            for part in value.state_dict():
                del tensors[f"{name}{SUFFIX}.{part}"]
        elif isinstance(tensors.get(name), Tensor):
            entries[name] = _own(value, tensors.pop(name))
    return entries | only_tensors(tensors), found


def _own(value: Tensor, given: Tensor) -> Tensor:
    """Return the module's own tensor, unless its ``state_dict`` gives another one for it."""
    if not (dtypes.is_dense(value) and dtypes.is_dense(given)):
        return value
    return value if shared({"own": value, "given": given}) or not value.numel() else given


def only_tensors(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors among the entries that modules add to a ``state_dict``.

    Entries without tensors are left out, with a warning.

    Raises
    ------
    InputError
        If another object holds tensors, which would be lost.
    """
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    for name in entries.keys() - tensors.keys():
        if any(isinstance(x, Tensor | torch.ScriptObject) for x in tree_leaves(entries[name])):
            raise InputError(
                f"{name!r} holds tensors in a {type(entries[name]).__name__}, which a file cannot "
                "hold; save the model as it was before its layers were quantized or packed"
            )
    if left_out := [name for name in entries if name not in tensors]:
        warnings.warn(f"extra state that is no tensor is left out: {left_out}", stacklevel=3)
    return tensors
