"""Parameters of a factored model in groups, for an optimizer."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor.errors import InputError
from tersor.nn import FactoredWeight

LATENTS, CODEBOOKS, REST = "latents", "codebooks", "rest"

_WRAPPER = "_checkpoint_wrapped_module."
"""What activation checkpointing puts into paths."""

_LATENT = 20.0
"""Learning rate of latents, in units of their grid, over that of dense weights."""

_CODEBOOK = 1.0
"""Learning rate of a codebook over that of dense weights, per mean magnitude of its elements."""


def factored_weights(model: nn.Module) -> dict[str, FactoredWeight]:
    """The weights of a model that are integer factors, each once, by their first paths."""
    return {
        name.replace(_WRAPPER, ""): module
        for name, module in model.named_modules()
        if isinstance(module, FactoredWeight) and module.integer_latent and module.integer_codebook
    }


def trained_latents(model: nn.Module) -> dict[str, FactoredWeight]:
    """Weights whose latents are trained and take more or fewer bits, by their first paths.

    Those of signs are trained as well, but need no projection: any signs take as many bits.
    """
    weights = factored_weights(model)
    latents = {name: w.own_latent for name, w in weights.items() if not w.signs}
    return {n: weights[n] for n, own in latents.items() if own.requires_grad and own.numel()}


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters of a model with factors, as `torch.optim` takes them.

    Factors are integers of different sizes, so that each kind needs a learning rate of its own.
    With those given here Adam, AdamW and other optimizers that divide by the gradient's size move
    the weights about as far as they would move dense ones.

    Parameters
    ----------
    model
        Model that `tersor.compress` has given factors.
    lr
        Learning rate that would suit the dense model, such as 1e-3 for AdamW.
    weight_decay
        Of the rest, where it has two axes or more. Factors, biases and normalisation parameters
        get none: it would change the size of the file, or what a decayed scale is multiplied with.
        Weights of batch normalisation, which folding makes large or small, move in proportion.

    Returns
    -------
    list of dict
        Each has ``params``, ``lr``, ``weight_decay`` and a ``name``: "latents", "codebooks" (one
        group for each codebook, as its learning rate depends on it) or "rest" (one for each weight
        of batch normalisation, and two more). Empty ones are left out.

    Raises
    ------
    InputError
        If no parameter is to be trained, or the learning rate is not a positive number.

    Examples
    --------
    >>> optimizer = torch.optim.AdamW(tersor.parameter_groups(model, lr=1e-3))
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
    """Weights of batch normalisation, each once."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    return list(dict.fromkeys(m.weight for m in layers if isinstance(m.weight, nn.Parameter)))


def _magnitude(parameter: nn.Parameter) -> float:
    """Mean magnitude of the elements; 1 if that is 0 or there are none."""
    return float(parameter.detach().abs().mean()) or 1.0


def _group(
    name: str, parameters: list[nn.Parameter], lr: float, weight_decay: float = 0.0
) -> dict[str, Any]:
    trained = [p for p in parameters if p.requires_grad]
    return {"params": trained, "lr": lr, "weight_decay": weight_decay, "name": name}


def _size(weight: FactoredWeight) -> float:
    """Mean magnitude of a codebook's elements; 1 if there are none."""
    codebook = weight.codebook.detach()
    return max(1.0, float(codebook.abs().mean())) if codebook.numel() else 1.0
