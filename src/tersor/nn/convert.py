"""Dense model <-> factored model, by the names in the dense model's ``state_dict``."""

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
from tersor.nn.owner import attach, forget
from tersor.nn.sites import Site, Weight, find_sites, join_names, weights_of
from tersor.nn.weight import FactoredWeight
from tersor.storage import dtypes
from tersor.storage.checkpoint import shared


def insert_factors(model: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Replace weights of a model by factors, in place; the dense weights are freed.

    Modules keep their identity, hooks, training flag and device. A weight keeps the data type of
    the parameter that it replaces, and whether it is trained. Nothing is changed if any of the
    factors does not fit. Parameters are new: make optimizers and DDP wrappers afterwards.

    Parameters
    ----------
    model
        Model of any device and floating-point type.
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
    """All sites of the weights of these names, each of which factors can replace.

    Parameters
    ----------
    model
        Model, which is not changed.
    shapes
        Of the factors' weights, by name.

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
    """Replace one weight, at all its sites, by factors; returns what holds them.

    The list is emptied: so the dense weight is freed before its factors take memory. The data type
    is that of the weight, unless another is given. Factors of a weight on the meta device, which
    has no values, stay on the device that they are on.
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
    """Content of a model, dense or factored, under the names of the dense model's ``state_dict``.

    Parameters
    ----------
    model
        Model, with factors or without.

    Returns
    -------
    dict
        The `HeldWeight` of factored weights, and for the rest the parameters and persistent
        buffers themselves, in the order of the dense model. Names of one tied weight have the same
        object, or tensors of the same storage. What modules compute for their ``state_dict``, such
        as extra state, comes as they give it; what is no tensor is left out, with a warning.
    """
    tensors = model.state_dict()
    entries: dict[str, HeldWeight | Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, HeldWeight):
            for part in module.state_dict():
                del tensors[f"{path}.{part}"]
            continue
        for name, value in {**weights_of(module), **module._buffers}.items():
            full = join_names(path, name)
            if isinstance(value, HeldWeight):
                entries[full] = value
            elif isinstance(tensors.get(full), Tensor):
                entries[full] = _own(value, tensors.pop(full))
    return entries | only_tensors(tensors)


def _own(value: Tensor, given: Tensor) -> Tensor:
    """The tensor of the module itself, unless its ``state_dict`` gives another one for it."""
    if not (dtypes.is_dense(value) and dtypes.is_dense(given)):
        return value
    return value if shared({"own": value, "given": given}) or not value.numel() else given


def only_tensors(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """What modules put into a ``state_dict`` beside parameters and buffers, if tensors.

    Raises
    ------
    InputError
        If it is something else that holds tensors, which would be lost.
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
