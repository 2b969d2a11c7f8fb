# SPDX-License-Identifier: Apache-2.0
"""Divide the parameters of a factored model into groups for an optimizer."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor.errors import InputError
from tersor.nn import FactoredWeight

LATENTS, CODEBOOKS, REST = "latents", "codebooks", "rest"

_WRAPPER = "_checkpoint_wrapped_module."
"""Part of a module's path that activation checkpointing adds."""

_LATENT = 20.0
"""Ratio of the learning rate of latents, in units of their grid, to that of dense weights."""

_CODEBOOK = 1.0
"""Ratio of the learning rate of a codebook to that of dense weights, per mean magnitude of the
codebook's elements."""


def factored_weights(model: nn.Module) -> dict[str, FactoredWeight]:
    """Return the weights of a model that are integer factors, by their first paths.

    A weight that several modules share is returned once.
    """
    return {
        name.replace(_WRAPPER, ""): module
        for name, module in model.named_modules()
        if isinstance(module, FactoredWeight) and module.integer_latent and module.integer_codebook
    }


def trained_latents(model: nn.Module) -> dict[str, FactoredWeight]:
    """Return the weights whose latents are trained and projected, by their first paths.

    Binary latents are trained too, but they are left out: all binary latents of one shape take the
    same number of bits, so that they need no projection.
    """
    weights = factored_weights(model)
    latents = {name: w.own_latent for name, w in weights.items() if not w.binary}
    return {n: weights[n] for n, own in latents.items() if own.requires_grad and own.numel()}


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return the trainable parameters of a factored model in groups, as `torch.optim` takes them.

    Factors are integers of different magnitudes. Each kind therefore needs its own learning rate.
    With these learning rates, Adam, AdamW and other optimizers that divide by the magnitude of the
    gradient change the weights about as much as they would change dense weights.

    Parameters
    ----------
    model
        Model that `tersor.compress` has given factors.
    lr
        Learning rate that suits the dense model, such as 1e-3 for AdamW.
    weight_decay
        Weight decay of the parameters that are not factors and have two axes or more; 0 by default.
        Factors, biases and normalisation parameters have none: it would change the size of the
        file, or the values that a decayed scale is multiplied with. The learning rate of a batch
        normalisation's weight is proportional to its mean magnitude, because folding makes such
        weights large or small.

    Returns
    -------
    list of dict
        Groups with the keys ``params``, ``lr``, ``weight_decay`` and ``name``. The name is
        "latents", "codebooks" (one group for each codebook, because its learning rate depends on
        the codebook) or "rest" (one group for each weight of batch normalisation, and two more).
        Empty groups are left out.

    Raises
    ------
    InputError
        If all parameters are frozen, or the learning rate is not a positive number.

    Examples
    --------
    >>> model = torch.nn.Linear(32, 16)
    >>> report = tersor.compress(model, ratio=4)
    >>> groups = tersor.parameter_groups(model, lr=1e-3)
    >>> optimizer = torch.optim.AdamW(groups)
    >>> sorted({group["name"] for group in groups})
    ['codebooks', 'latents', 'rest']
    """
    if not 0 < lr < math.inf:
        raise InputError(f"the learning rate must be a positive number, got {lr!r}")
    weights = factored_weights(model).values()
    latents = [w.latent for w in weights]
    groups = [_group(LATENTS, latents, _LATENT * lr)]
    groups += [_group(CODEBOOKS, [w.codebook], _CODEBOOK * lr * _size(w)) for w in weights]
    groups += [_group(REST, [scale], lr * _magnitude(scale)) for scale in norm_weights(model)]
    taken = {id(p) for group in groups for p in group["params"]}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups.append(_group(REST, [p for p in rest if p.ndim < 2], lr))
    groups.append(_group(REST, [p for p in rest if p.ndim >= 2], lr, weight_decay))
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise InputError("all parameters are frozen: set requires_grad of those that are to train")
    return groups


def norm_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of all batch normalisation layers, each once."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    return list(dict.fromkeys(m.weight for m in layers if isinstance(m.weight, nn.Parameter)))


def _magnitude(parameter: nn.Parameter) -> float:
    """Return the mean magnitude of the elements, or 1 if it is 0 or there are no elements."""
    return float(parameter.detach().abs().mean()) or 1.0


def _group(
    name: str, parameters: list[nn.Parameter], lr: float, weight_decay: float = 0.0
) -> dict[str, Any]:
    trained = [p for p in parameters if p.requires_grad]
    return {"params": trained, "lr": lr, "weight_decay": weight_decay, "name": name}


def _size(weight: FactoredWeight) -> float:
    """Return the mean magnitude of a codebook's elements, at least 1."""
    codebook = weight.codebook.detach()
    return max(1.0, float(codebook.abs().mean())) if codebook.numel() else 1.0
