"""How much the output of a model suffers from an error of one of its weights, by trying."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

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

NOISE = 0.05
"""Energy of the noise that a layer's output gets, as a share of the output's: 13 dB."""

_SATURATED = 0.5
"""Errors of the output above this grow less than the noise: that is then tried with a tenth."""

_FAINTEST = 1e-6
"""Share of the noise below which none is tried."""

_LEAST = 1e-9
"""Smallest importance, as a share of the largest: what has none still gets a step."""

_ROUNDING = 16.0
"""Multiple of the error by rounding alone up to which an error is no effect."""

_NOTHING = 1e-6
"""Errors above this are not rounding."""


def importances(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    metric: Callable[[str], Tensor | None],
    calls: Sequence[Call],
    progress: Progress,
) -> tuple[dict[str, float], list[str]]:
    """Relative squared error of the output for a squared error of 1 of each weight.

    Each weight gets noise, all others being as they are; normalisation is matched, as it will be
    after compression. So a layer whose errors later layers damp, or normalisation takes away,
    counts less than one whose errors reach the output. Noise that leaves nothing of the output
    does not tell how much weaker noise matters: that is tried, too.

    Parameters
    ----------
    model
        The dense model; as before at the end.
    weights
        By name.
    metric
        Given a name: matrix H, (m, m), by which the squared error ``tr(E H Eᵀ)`` of rows E is
        measured; None for the identity.
    calls
        Each calls a model with a batch, and returns tensors, in containers or not.
    progress
        Called as the work goes on.

    Returns
    -------
    dict
        Positive numbers by name; none, with a warning, if the calls return no tensors.
    list
        Names of weights that the outputs do not depend on.
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
    # Matched normalisation computes the same in another way: its rounding is no effect.
    with _restored(model):
        rounding = mean_share(_matched_outputs(model, before, calls), wanted) if before else 0.0
    found, idle = dict[str, float](), list[str]()
    for number, (name, weight) in enumerate(weights.items()):
        progress(f"importance of {name}", number / len(weights))
        noise, size = _noise(name, as_float32(weight), metric(name))

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
    """Outputs of all calls, in which normalisation is matched as they go."""
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
    """Noise like the solver's error of a weight, the same in each run, and its squared error."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(weight.shape, generator=generator)
    if metric is not None:
        # What the calibrated solver leaves is small where inputs are strong, and below the weights
        # where these are weak: as in reverse water-filling, but smooth.
        factor = torch.linalg.cholesky(metric / NOISE + torch.eye(len(metric)))
        rows = noise.reshape(len(noise), -1)
        noise = torch.linalg.solve_triangular(factor, rows, upper=False, left=False)
        noise = noise.reshape(weight.shape)
    signal = energy(weight.cpu(), metric)
    noise *= math.sqrt(NOISE * signal / energy(noise, metric))
    return noise.to(weight.device), NOISE * signal


@contextmanager
def _changed(model: nn.Module, weight: nn.Parameter, noise: Tensor) -> Iterator[None]:
    """The weight with noise; it and normalisation are as before at the end."""
    data = weight.data
    weight.data = data + noise.to(data.dtype)
    try:
        with _restored(model):
            yield
    finally:
        weight.data = data


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Statistics and parameters of normalisation are as before at the end."""
    layers = normalizations(model).values()
    held = [t for m in layers for t in (m.running_mean, m.running_var, m.weight, m.bias)]
    matched = [(tensor, tensor.clone()) for tensor in held if tensor is not None]
    try:
        yield
    finally:
        for tensor, value in matched:
            tensor.copy_(value)
