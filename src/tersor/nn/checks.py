# SPDX-License-Identifier: Apache-2.0
"""Refuse models and weights that cannot hold factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tersor.errors import InputError
from tersor.nn.owner import attaching_problem
from tersor.nn.sites import Site, Weight


def explain_unknown(model: nn.Module, name: str, sites: Mapping[str, Site]) -> str:
    """Return why the model has no parameter of that name, and a hint."""
    path, _, attribute = name.rpartition(".")
    owner = dict(model.named_modules(remove_duplicate=False)).get(path)
    if isinstance(getattr(owner, attribute, None), Tensor):
        return (
            f"{name!r} is no parameter: it is a buffer, or computed from other parameters by a "
            "parametrization (weight_norm, spectral_norm, pruning); remove that first"
        )
    close = get_close_matches(name, sites)
    hint = f"did you mean {close[0]!r}?" if close else "see the names in model.state_dict()"
    return f"the model has no parameter {name!r}; {hint}"


def check_model(model: nn.Module) -> None:
    """Refuse a model whose modules cannot be changed any more, or not yet.

    Raises
    ------
    InputError
        If the model is wrapped in DDP, is compiled to TorchScript or has uninitialized parameters.
    """
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise InputError(
                "the model is wrapped in DistributedDataParallel, which does not see new "
                "parameters; insert the factors first, then wrap it"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                "the model is compiled to TorchScript, which cannot be changed; use the Python "
                "model that it was made of"
            )
        for name, parameter in module._parameters.items():
            if parameter is not None and torch.nn.parameter.is_lazy(parameter):
                raise InputError(
                    f"{name!r} of a {type(module).__name__} is not initialized yet; run the model "
                    "once first"
                )


def check_weight(name: str, weight: Weight, shape: tuple[int, ...]) -> None:
    """Refuse a weight that factors of a weight of this shape cannot replace.

    Raises
    ------
    InputError
        If it is not a plain floating-point tensor, or its shape differs.
    """
    if isinstance(weight, Tensor) and not (
        type(weight.data) is Tensor and weight.is_floating_point()
    ):
        raise InputError(
            f"{name!r} is a {weight.dtype} {type(weight.data).__name__}; only plain "
            "floating-point weights can be replaced"
        )
    if tuple(weight.shape) != shape:
        raise InputError(
            f"{name!r} needs factors of a weight of shape {tuple(weight.shape)}, got shape {shape}"
        )


def check_site(name: str, site: Site) -> None:
    """Refuse a weight of a module that cannot hold its factors.

    Raises
    ------
    InputError
        If the module cannot; see `holding_problem`.
    """
    if problem := holding_problem(site):
        raise InputError(f"{name!r} belongs to a {type(site.module).__name__} {problem}")


def holding_problem(site: Site) -> str | None:
    """Return why a module cannot hold the factors of a weight, and what to do; None if it can."""
    module, hooks = site.module, site.module._forward_pre_hooks.values()
    computed = (WeightNorm, SpectralNorm, BasePruningMethod)
    if (
        parametrize.is_parametrized(module)
        or isinstance(module, parametrize.ParametrizationList)
        or any(isinstance(hook, computed) for hook in hooks)
    ):
        return (
            "with a parametrization (weight_norm, spectral_norm, pruning); remove that first, by "
            "torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm or prune.remove"
        )
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        # Its children are its content, so the factors would become one more item of it.
        return "directly, which cannot hold factors; move the parameter to a module of its own"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        return "with sparse gradients, which factors do not have; set its attribute sparse to False"
    if isinstance(site.weight, Tensor) and type(site.weight.data) is not Tensor:
        kind = type(site.weight.data).__name__
        return f"as a {kind}, not a plain tensor; convert it to one first"
    return attaching_problem(module, site.attribute)


def check_references(model: nn.Module, weights: Iterable[Weight | Tensor]) -> None:
    """Refuse a model that also holds weights, which will be replaced, outside of its parameters.

    Parameters
    ----------
    model
        The model.
    weights
        Weights that will be replaced.

    Raises
    ------
    InputError
        If such a weight is an attribute of a module, or is in a list, tuple, set or dictionary that
        is an attribute. The module would continue to compute with the old weight.
    """
    replaced = {id(weight) for weight in weights}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            known = name.startswith("_") and name in _REGISTERED
            if known or (isinstance(module, nn.RNNBase) and name == "_flat_weights"):
                continue
            items = value.values() if isinstance(value, dict) else value
            held = items if isinstance(value, dict | list | tuple | set) else (value,)
            if any(isinstance(item, Tensor) and id(item) in replaced for item in held):
                where = f"{path}.{name}" if path else name
                raise InputError(
                    f"the attribute {where!r} holds a weight of the model that is to be replaced, "
                    "and would go on to be used; let the module read the weight from its parameter "
                    "in each forward"
                )


_REGISTERED = ("_parameters", "_buffers", "_modules")
