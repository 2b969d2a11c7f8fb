"""Refusal of models and weights that cannot hold factors."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tersor.errors import InputError
from tersor.nn.sites import Site, Weight


def explain_unknown(model: nn.Module, name: str, sites: Mapping[str, Site]) -> str:
    """Why a name is not that of a parameter."""
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
    """Refuse a model whose modules cannot be changed any more."""
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise InputError(
                "the model is wrapped in DistributedDataParallel, which does not see new "
                "parameters; insert the factors first, then wrap it"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                "the model is compiled to TorchScript; insert the factors into the Python model"
            )


def check_weight(name: str, weight: Weight, shape: tuple[int, ...]) -> None:
    """Refuse a weight that factors of a weight of this shape cannot replace."""
    if isinstance(weight, nn.Parameter):
        if torch.nn.parameter.is_lazy(weight):
            raise InputError(f"{name!r} is not initialized yet; run the model once first")
        if type(weight.data) is not Tensor or not weight.is_floating_point():
            raise InputError(
                f"{name!r} is a {weight.dtype} {type(weight.data).__name__}; only plain "
                "floating-point weights can be replaced"
            )
    if tuple(weight.shape) != shape:
        raise InputError(
            f"{name!r} needs factors of a weight of shape {tuple(weight.shape)}, got shape {shape}"
        )


def check_module(name: str, module: nn.Module) -> None:
    """Refuse a module that cannot hold factors."""
    if problem := holding_problem(module):
        raise InputError(f"{name!r} belongs to a {type(module).__name__} {problem}")


def holding_problem(module: nn.Module) -> str | None:
    """Why a module cannot hold factors, and what to do; None if it can."""
    hooks = module._forward_pre_hooks.values()
    computed = (WeightNorm, SpectralNorm, BasePruningMethod)
    if (
        parametrize.is_parametrized(module)
        or isinstance(module, parametrize.ParametrizationList)
        or any(isinstance(hook, computed) for hook in hooks)
    ):
        return (
            "with a parametrization (weight_norm, spectral_norm, pruning); remove that first, as "
            "with torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"
        )
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        # Its children are its content, and the factors would be one more.
        return "directly, which cannot hold factors; move the parameter to a module of its own"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        return "with sparse gradients, which factors do not have; set its attribute sparse to False"
    return None
