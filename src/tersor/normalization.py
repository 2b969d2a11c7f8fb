"""Match the normalisation statistics of a compressed model to those of the dense model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor.errors import InputError
from tersor.nn.observe import Look, observing

RANGE = (0.5, 2.0)
"""Limits of the factor of a variance; channels that compression silenced would blow up."""


@torch.no_grad()
def match_normalization(model: nn.Module, reference: nn.Module, *inputs: Any) -> None:
    """Shift and scale the running statistics so that normalised activations agree on average.

    Compression changes the mean and the variance of what reaches a normalisation layer. Each
    running mean is shifted by the difference of the means between the two models, and each
    running variance scaled by the ratio of the variances, layer by layer in the order of the
    forward pass: a later layer sees the correction of those before it. Statistics are *not*
    re-estimated, since the running statistics of training saw other images than these, augmented.

    Parameters
    ----------
    model
        Compressed model; its BatchNorm buffers are changed in place.
    reference
        The dense model, of the same architecture.
    *inputs
        What both are called with, once: a batch of about a thousand samples.

    Raises
    ------
    InputError
        If the models have different normalisation layers.
    """
    dense = _layers(reference)
    layers = _layers(model)
    if layers.keys() != dense.keys():
        raise InputError(
            "the two models have different BatchNorm layers: "
            f"{sorted(layers.keys() ^ dense.keys())[:5]} are in one of them only"
        )
    wanted: dict[str, tuple[Tensor, Tensor]] = {}

    def remember(name: str, layer: _BatchNorm, x: Tensor) -> None:
        wanted[name] = _moments(x)

    def correct(name: str, layer: _BatchNorm, x: Tensor) -> None:
        (mean, variance), (dense_mean, dense_variance) = _moments(x), wanted[name]
        assert layer.running_mean is not None and layer.running_var is not None
        factor = variance / dense_variance.clamp_min(torch.finfo(x.dtype).tiny)
        _replace(layer.running_mean, layer.running_mean + mean - dense_mean)
        _replace(layer.running_var, layer.running_var * factor.clamp(*RANGE))

    _watch(reference, dense, remember, inputs)
    _watch(model, layers, correct, inputs)


def _replace(values: Tensor, new: Tensor) -> None:
    """Set values, at 16 bits where they were, so that the model stays what its file will hold."""
    at_16_bits = torch.equal(values, values.to(torch.bfloat16).to(values.dtype))
    values.copy_(new.to(torch.bfloat16) if at_16_bits else new)


def _layers(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


def _watch(
    model: nn.Module,
    layers: dict[str, _BatchNorm],
    look: Callable[[str, _BatchNorm, Tensor], None],
    inputs: tuple[Any, ...],
) -> None:
    """Run the model in evaluation mode; ``look`` sees the input of each layer before the layer."""
    looks: dict[nn.Module, Look] = {
        layer: partial(look, name, layer) for name, layer in layers.items()
    }
    with observing(model, looks):
        model(*inputs)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of (batch, channels, ...)."""
    axes = [0, *range(2, x.ndim)]
    return x.mean(axes), x.var(axes)
