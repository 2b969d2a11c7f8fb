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
"""Limits of the factor of a variance; channels that compression silenced would blow up."""


@torch.no_grad()
def match_normalization(model: nn.Module, reference: nn.Module, loader: Iterable[Any]) -> None:
    """Shift and scale the running statistics so that normalised activations agree on average.

    Compression changes the mean and the variance of what reaches a normalisation layer. Each
    running variance is scaled by the ratio of the variances in the two models, and each running
    mean set so that what the layer puts out has the mean of the dense model, layer by layer in the
    order of the forward pass: a later layer sees the correction of those before it. Statistics are
    *not* re-estimated, since the running statistics of training saw other samples than these,
    augmented.

    Parameters
    ----------
    model
        Compressed model; its BatchNorm buffers are changed in place.
    reference
        The dense model, of the same architecture.
    loader
        Yields batches that both are called with, as in `calibrate`: about a thousand samples in
        all. All are in memory at once, with what they are in one layer.

    Raises
    ------
    InputError
        If the models have different normalisation layers, or cannot be called with the batches.
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
    """Moments of what reaches each normalisation layer."""
    stops = lockstep((model,), list(normalizations(model)), calls)
    return {stop.name: moments_of(stop.inputs[0]) for stop in stops}


def normalizations(model: nn.Module) -> dict[str, _BatchNorm]:
    """Layers with running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


def match_layer(layer: _BatchNorm, dense: _BatchNorm, now: Moments, wanted: Moments) -> None:
    """Match the statistics of one layer, given the moments of what reaches it in the two models."""
    (mean, variance), (dense_mean, dense_variance) = now, wanted
    assert layer.running_mean is not None and layer.running_var is not None
    assert dense.running_mean is not None and dense.running_var is not None
    factor = variance / dense_variance.clamp_min(torch.finfo(variance.dtype).tiny)
    spread = dense.running_var * factor.clamp(*RANGE)
    ratio = ((spread + dense.eps) / (dense.running_var + dense.eps)).sqrt()
    if statistics_folded(dense) and statistics_folded(layer):  # weight and bias have taken over
        replace_values(layer.weight, dense.weight / ratio)
        kept = dense.weight * dense_mean - layer.weight * mean
        replace_values(layer.bias, dense.bias + kept * (1 + dense.eps) ** -0.5)
        return
    replace_values(layer.running_mean, mean - (dense_mean - dense.running_mean) * ratio)
    replace_values(layer.running_var, spread)


def statistics_folded(layer: _BatchNorm) -> bool:
    """Whether the statistics of a layer are those that change nothing, see `fold_normalization`."""
    assert layer.running_mean is not None and layer.running_var is not None
    return layer.affine and not layer.running_mean.any() and bool((layer.running_var == 1).all())


def replace_values(values: Tensor, new: Tensor) -> None:
    """Set values, at 16 bits where they were, so that the model stays what its file will hold."""
    at_16_bits = torch.equal(values, values.to(torch.bfloat16).to(values.dtype))
    values.copy_(new.to(torch.bfloat16) if at_16_bits else new)


def moments_of(batches: Sequence[Tensor]) -> Moments:
    """Mean and variance of each channel of batches (batch, channels, ...)."""
    axes = [0, *range(2, batches[0].ndim)]
    sizes = torch.tensor([x[:, 0].numel() for x in batches], device=batches[0].device)
    means = torch.stack([x.mean(axes) for x in batches])
    squares = torch.stack([_variance(x, m) for x, m in zip(batches, means, strict=True)])
    shares = (sizes / sizes.sum())[:, None].to(means.dtype)
    mean = (shares * means).sum(0)
    return mean, (shares * (squares + (means - mean) ** 2)).sum(0)


def _variance(x: Tensor, mean: Tensor) -> Tensor:
    """As `Tensor.var` of each channel without correction, which takes twice as long."""
    centred = x - mean.reshape(-1, *[1] * (x.ndim - 2))
    return centred.square_().mean([0, *range(2, x.ndim)])
