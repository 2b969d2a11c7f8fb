# SPDX-License-Identifier: Apache-2.0
"""Match the normalisation statistics of a compressed model to those of the dense model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor.calibration.samples import calls_of
from tersor.errors import InputError
from tersor.nn.lockstep import Call, lockstep

RANGE = (0.5, 2.0)
"""Limits of the factor of a variance, since channels that compression silenced would blow up."""


@torch.no_grad()
def match_normalization(model: nn.Module, reference: nn.Module, loader: Iterable[Any]) -> None:
    """Shift and scale the running statistics so that normalised activations agree on average.

    Compression changes the mean and the variance of the inputs of a normalisation layer. Each
    running variance is scaled by the ratio of the input variances in the two models. Each running
    mean is set so that the mean of the layer's output is that of the dense model. The layers are
    processed in the order of the forward pass, so that a later layer sees the corrections of
    earlier ones. Statistics are *not* re-estimated, because those of training were taken from
    other, augmented samples.

    Parameters
    ----------
    model
        Compressed model. Its BatchNorm buffers are changed in place; where the statistics are
        folded (see `fold_normalization`), weight and bias are changed instead.
    reference
        The dense model, of the same architecture.
    loader
        Yields batches that both models are called with, as in `calibrate`: about a thousand samples
        in all. All batches are in memory at once, together with their activations in one layer.

    Raises
    ------
    InputError
        If the models have different normalisation layers, or cannot be called with the batches.

    Examples
    --------
    >>> from copy import deepcopy
    >>> dense = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.BatchNorm2d(32)).eval()
    >>> model = deepcopy(dense)
    >>> report = tersor.compress(model, ratio=4)
    >>> tersor.match_normalization(model, dense, [torch.randn(64, 3, 8, 8)])
    """
    dense, layers = normalizations(reference), normalizations(model)
    if layers.keys() != dense.keys():
        raise InputError(
            "the two models have different BatchNorm layers: "
            f"{sorted(layers.keys() ^ dense.keys())[:5]} are in one of them only"
        )
    calls = calls_of(loader)
    wanted = input_moments(reference, calls)
    for stop in lockstep((model,), list(layers), calls):
        match_layer(
            layers[stop.name], dense[stop.name], moments_of(stop.inputs[0]), wanted[stop.name]
        )


Moments = tuple[Tensor, Tensor]
"""Mean and variance of each channel."""


def input_moments(model: nn.Module, calls: Sequence[Call]) -> dict[str, Moments]:
    """Return the moments of the inputs of each normalisation layer, by the layer's name."""
    stops = lockstep((model,), list(normalizations(model)), calls)
    return {stop.name: moments_of(stop.inputs[0]) for stop in stops}


def normalizations(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch normalisation layers that have running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


def match_layer(layer: _BatchNorm, dense: _BatchNorm, now: Moments, wanted: Moments) -> None:
    """Match the statistics of one layer, given the moments of its inputs in the two models.

    Parameters
    ----------
    layer
        Layer of the compressed model, which is changed in place.
    dense
        The same layer of the dense model.
    now, wanted
        Moments of the layer's inputs in the compressed and in the dense model.
    """
    (mean, variance), (dense_mean, dense_variance) = now, wanted
    assert layer.running_mean is not None and layer.running_var is not None
    assert dense.running_mean is not None and dense.running_var is not None
    factor = variance / dense_variance.clamp_min(torch.finfo(variance.dtype).tiny)
    spread = dense.running_var * factor.clamp(*RANGE)
    ratio = ((spread + dense.eps) / (dense.running_var + dense.eps)).sqrt()
    if statistics_folded(dense) and statistics_folded(layer):  # weight and bias replace them
        replace_values(layer.weight, dense.weight / ratio)
        kept = dense.weight * dense_mean - layer.weight * mean
        replace_values(layer.bias, dense.bias + kept * (1 + dense.eps) ** -0.5)
        return
    replace_values(layer.running_mean, mean - (dense_mean - dense.running_mean) * ratio)
    replace_values(layer.running_var, spread)


def statistics_folded(layer: _BatchNorm) -> bool:
    """Return whether a layer's mean is 0 and its variance 1, see `fold_normalization`."""
    assert layer.running_mean is not None and layer.running_var is not None
    return layer.affine and not layer.running_mean.any() and bool((layer.running_var == 1).all())


def replace_values(values: Tensor, new: Tensor) -> None:
    """Set values in place, rounded to 16 bits if the old ones were.

    The model then holds the same values as the file that is written from it.
    """
    at_16_bits = torch.equal(values, values.to(torch.bfloat16).to(values.dtype))
    values.copy_(new.to(torch.bfloat16) if at_16_bits else new)


def moments_of(batches: Sequence[Tensor]) -> Moments:
    """Return the mean and variance of each channel over batches (batch, channels, ...)."""
    axes = [0, *range(2, batches[0].ndim)]
    sizes = torch.tensor([x[:, 0].numel() for x in batches], device=batches[0].device)
    means = torch.stack([x.mean(axes) for x in batches])
    squares = torch.stack([_variance(x, m) for x, m in zip(batches, means, strict=True)])
    shares = (sizes / sizes.sum())[:, None].to(means.dtype)
    mean = (shares * means).sum(0)
    return mean, (shares * (squares + (means - mean) ** 2)).sum(0)


def _variance(x: Tensor, mean: Tensor) -> Tensor:
    """Return the variance of each channel; `Tensor.var` without correction takes twice as long."""
    centred = x - mean.reshape(-1, *[1] * (x.ndim - 2))
    return centred.square_().mean([0, *range(2, x.ndim)])
