# SPDX-License-Identifier: Apache-2.0
"""Measure how much the output of a model changes when noise is added to one of its weights."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tersor.calibration.moments import energy
from tersor.calibration.normalization import (
    Moments,
    input_moments,
    match_layer,
    moments_of,
    normalizations,
)
from tersor.calibration.output_error import mean_share, outputs_in
from tersor.nn.lockstep import Call, lockstep
from tersor.nn.observe import observing
from tersor.progress import Progress
from tersor.tiling import as_float32

if TYPE_CHECKING:
    from tersor.calibration.calibrate import Calibration

NOISE = 0.05
"""Energy of the noise in a layer's output, as a share of the output's energy: 13 dB."""

_SATURATED = 0.5
"""Errors of the output above this grow less than the noise: that is then tried with a tenth."""

_FAINTEST = 1e-6
"""Share of the noise below which none is tried."""

_LEAST = 1e-9
"""Smallest importance, as a share of the largest: a weight without effect still gets a step."""

_ROUNDING = 16.0
"""Errors up to this multiple of the error that rounding alone causes count as no effect."""

_NOTHING = 1e-6
"""Errors above this limit are never taken for rounding."""


def importances(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    known: Calibration,
    calls: Sequence[Call],
    progress: Progress,
) -> tuple[dict[str, float], list[str]]:
    """Return the relative squared error of the output per squared error of each weight.

    Noise is added to one weight at a time, while all others are unchanged. Normalisation is
    matched, as it will be after compression. A layer therefore counts less if later layers damp
    its errors, or if normalisation removes them. If the noise leaves nothing of the output, weaker
    noise is tried too.

    Parameters
    ----------
    model
        The dense model. Its values are restored at the end.
    weights
        The weights to measure, by name.
    known
        Its `metric` is the matrix H, (m, m), by which the squared error ``tr(E H Eᵀ)`` of rows E is
        measured, or None for the identity.
    calls
        Functions that call a model with one batch each and return tensors, nested or not.
    progress
        Called with a message and the share of the work that is done.

    Returns
    -------
    dict
        Positive importance by name. If the calls return no tensors, it is empty and a warning is
        given.
    list
        Names of the weights that the outputs do not depend on.
    """
    before = input_moments(model, calls)
    with observing(model, {}):
        wanted = [tensor for call in calls for tensor in outputs_in(call(model))]
    if not wanted:
        warnings.warn(
            "all weights are taken to matter alike: what the model returns holds no floating-point "
            "tensors; let the function 'output' of tersor.calibrate return some",
            stacklevel=4,
        )
        return {}, []
    # Matched normalisation gives the same outputs with other rounding, which is no effect of noise.
    with _restored(model):
        rounding = mean_share(_matched_outputs(model, before, calls), wanted) if before else 0.0
    found, idle = dict[str, float](), list[str]()
    for number, (name, weight) in enumerate(weights.items()):
        progress(f"importance of {name}", number / len(weights))
        oriented = known.oriented(name, as_float32(weight))
        noise, size = _noise(name, oriented, known.metric(name))
        noise = known.oriented(name, noise)

        def error_of(part: float, weight: nn.Parameter = weight, noise: Tensor = noise) -> float:
            with _changed(model, weight, math.sqrt(part) * noise):
                return mean_share(_matched_outputs(model, before, calls), wanted)

        errors = _unsaturated(error_of)
        found[name] = max(error / (part * size) for part, error in errors.items())
        if errors[1.0] <= min(_ROUNDING * rounding, _NOTHING):
            idle.append(name)
    least = _LEAST * max(found.values(), default=0.0)
    return {name: max(value, least) or 1.0 for name, value in found.items()}, idle


def _unsaturated(error_of: Callable[[float], float]) -> dict[float, float]:
    """Errors of the output by the share of the noise, which falls until something is left."""
    part = 1.0
    errors = {part: error_of(part)}
    while errors[part] > _SATURATED and part > _FAINTEST:
        part /= 10
        errors[part] = error_of(part)
    return errors


def _matched_outputs(
    model: nn.Module,
    wanted: Mapping[str, Moments],
    calls: Sequence[Call],
) -> list[Tensor]:
    """Match normalisation while the model runs, and return the outputs of all calls."""
    found: dict[int, list[Tensor]] = {}

    def recorded(number: int, call: Call) -> Call:
        return lambda model: found.update({number: list(outputs_in(call(model)))})

    layers = normalizations(model)
    recording = [recorded(number, call) for number, call in enumerate(calls)]
    for stop in lockstep((model,), list(layers), recording):
        layer = layers[stop.name]
        match_layer(layer, layer, moments_of(stop.inputs[0]), wanted[stop.name])
    return [tensor for number in range(len(calls)) for tensor in found[number]]


def _noise(name: str, weight: Tensor, metric: Tensor | None) -> tuple[Tensor, float]:
    """Return reproducible noise that resembles the solver's error, and its squared error."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(weight.shape, generator=generator)
    if metric is not None:
        # The error of the calibrated solver is small where inputs are strong. Where inputs are
        # weak, it stays below the weights. This is a smooth form of reverse water-filling.
        factor = torch.linalg.cholesky(metric / NOISE + torch.eye(len(metric)))
        rows = noise.reshape(len(noise), -1)
        noise = torch.linalg.solve_triangular(factor, rows, upper=False, left=False)
        noise = noise.reshape(weight.shape)
    signal = energy(weight.cpu(), metric)
    noise *= math.sqrt(NOISE * signal / energy(noise, metric))
    return noise.to(weight.device), NOISE * signal


@contextmanager
def _changed(model: nn.Module, weight: nn.Parameter, noise: Tensor) -> Iterator[None]:
    """Add noise to the weight, then restore the weight and normalisation on exit."""
    data = weight.data
    weight.data = data + noise.to(data.dtype)
    try:
        with _restored(model):
            yield
    finally:
        weight.data = data


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore the statistics and parameters of normalisation on exit."""
    layers = normalizations(model).values()
    held = [t for m in layers for t in (m.running_mean, m.running_var, m.weight, m.bias)]
    matched = [(tensor, tensor.clone()) for tensor in held if tensor is not None]
    try:
        yield
    finally:
        for tensor, value in matched:
            tensor.copy_(value)
