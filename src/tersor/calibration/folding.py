# SPDX-License-Identifier: Apache-2.0
"""Fold normalisation statistics into the parameters beside them, so that fewer are stored."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor.calibration.normalization import normalizations, statistics_folded
from tersor.calibration.samples import call_whole, logits
from tersor.errors import InputError, explained
from tersor.nn.observe import removing

_CLOSE = 1e-3
"""Largest difference of the outputs that counts as rounding, relative to their maximum."""


@torch.no_grad()
def fold_normalization(model: nn.Module, *inputs: Any) -> list[str]:
    """Set batch normalisation statistics to mean 0 and variance 1 without a change of the outputs.

    The weight and the bias of each normalisation layer take over the effect of its running
    statistics and of the bias of the layer before it, which becomes 0. Of five numbers per channel
    two remain, which saves a tenth or more of a small file. The folded model suits inference, and
    training that keeps the running statistics, as `tersor.finetune` then does. Training that uses
    the statistics of its batches would change the meaning of the folded weights.

    Parameters
    ----------
    model
        Model, dense or with factors, which is changed in place. Normalisation layers without weight
        and bias are left unchanged. Biases that became 0 are frozen.
    *inputs
        Positional arguments of the model, or one dict of its arguments by name. The model is called
        with them to find which layers follow one another, and to check that its outputs stay the
        same.

    Returns
    -------
    list of str
        Names of the layers that were folded.

    Raises
    ------
    InputError
        If the model cannot be called with the inputs, or if its outputs would change, for example
        because a bias has a second use. The model is then unchanged.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
    >>> tersor.fold_normalization(model, torch.randn(4, 3, 8, 8))
    ['1']
    >>> float(model[1].running_mean.abs().max())
    0.0
    """
    modes = {module: module.training for module in model.modules()}
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    folded = {n: m for n, m in normalizations(model).items() if m.affine}
    try:
        with explained("the model", "it is called with the inputs given"):
            before, sources = _sources(model.eval(), list(folded.values()), inputs)
        for layer in folded.values():
            fold(layer, sources.get(layer))
        after = logits(call_whole(model, inputs))
        if not bool((after - before).abs().max() <= _CLOSE * before.abs().max()):
            model.load_state_dict(saved)
            raise InputError(
                "the model computes something else with its normalisation folded: a layer before "
                "one has other uses, or a layer is used twice; leave its normalisation as it is"
            )
    finally:
        for module, mode in modes.items():
            module.training = mode
    for source in sources.values():
        source.bias.requires_grad_(False)
    return list(folded)


def is_folded(model: nn.Module) -> bool:
    """Return whether the model has batch normalisation, and all of it has mean 0 and variance 1."""
    layers = normalizations(model).values()
    return bool(layers) and all(statistics_folded(layer) for layer in layers)


def fold(layer: _BatchNorm, source: nn.Module | None) -> None:
    """Fold one normalisation layer and the bias of its source, the layer before it, if any."""
    assert layer.running_mean is not None and layer.running_var is not None
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    factor = (layer.running_var + layer.eps).rsqrt()
    mean = layer.running_mean.clone()
    if source is not None:
        mean -= cast(Tensor, source.bias)
        cast(Tensor, source.bias).zero_()
    bias.sub_(weight * factor * mean)
    weight.mul_(factor * math.sqrt(1 + layer.eps))
    layer.running_mean.zero_()
    layer.running_var.fill_(1.0)


def _sources(
    model: nn.Module, layers: list[_BatchNorm], inputs: tuple[Any, ...]
) -> tuple[Tensor, dict[_BatchNorm, nn.Module]]:
    """Return the model's output, and the module with a bias that feeds each of these layers."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}
    found: dict[_BatchNorm, nn.Module] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        made[id(output)] = (module, output)  # a kept output's id is not given to another tensor

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        maker = made.get(id(args[0]))
        if maker is not None:
            found[cast(_BatchNorm, module)] = maker[0]

    biased = [m for m in model.modules() if isinstance(getattr(m, "bias", None), nn.Parameter)]
    hooks = [m.register_forward_hook(note) for m in biased if not isinstance(m, _BatchNorm)]
    hooks += [layer.register_forward_pre_hook(look) for layer in layers]
    with removing(hooks):
        return logits(call_whole(model, inputs)), found
