"""How much the output of a model suffers from an error of one of its weights, by trying."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tersor.moments import energy
from tersor.nn.lockstep import Call, lockstep
from tersor.nn.observe import observing
from tersor.normalization import Moments, input_moments, match_layer, moments_of, normalizations
from tersor.plan.progress import Progress
from tersor.tiling import as_float32

NOISE = 0.05
"""Energy of the noise that a layer's output gets, as a share of the output's: 13 dB."""

_LEAST = 1e-9
"""Smallest importance, as a share of the largest: what has none still gets a step."""


def importances(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    metric: Callable[[str], Tensor | None],
    calls: Sequence[Call],
    progress: Progress,
) -> dict[str, float]:
    """Relative squared error of the output for a squared error of 1 of each weight.

    Each weight gets noise, all others being as they are; normalisation is matched, as it will be
    after compression. So a layer whose errors later layers damp, or normalisation takes away,
    counts less than one whose errors reach the output.

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
    """
    before = input_moments(model, calls)
    with observing(model, {}):
        wanted = [tensor for call in calls for tensor in _tensors(call(model))]
    if not wanted:
        warnings.warn(
            "all weights are taken to matter alike: what the model returns holds no floating-point "
            "tensors; let the function 'output' of tersor.calibrate return some",
            stacklevel=4,
        )
        return {}
    found = dict[str, float]()
    for number, (name, weight) in enumerate(weights.items()):
        progress(f"importance of {name}", number / len(weights))
        noise, size = _noise(name, as_float32(weight), metric(name))
        with _changed(model, weight, noise):
            found[name] = _error(_matched_outputs(model, before, calls), wanted) / size
    least = _LEAST * max(found.values(), default=0.0)
    return {name: max(value, least) or 1.0 for name, value in found.items()}


def _matched_outputs(
    model: nn.Module,
    wanted: Mapping[str, Moments],
    calls: Sequence[Call],
) -> list[Tensor]:
    """Outputs of all calls, in which normalisation is matched as they go."""
    found: dict[int, list[Tensor]] = {}

    def recorded(number: int, call: Call) -> Call:
        return lambda model: found.update({number: list(_tensors(call(model)))})

    layers = normalizations(model)
    recording = [recorded(number, call) for number, call in enumerate(calls)]
    for stop in lockstep((model,), list(layers), recording):
        layer = layers[stop.name]
        match_layer(layer, layer, moments_of(stop.inputs[0]), wanted[stop.name])
    return [tensor for number in range(len(calls)) for tensor in found[number]]


def _tensors(value: Any) -> Iterator[Tensor]:
    """All floating-point tensors in nested containers."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Mean, over outputs, of the squared error as a share of the energy."""
    shares = [_share(a, b) for a, b in zip(found, wanted, strict=True)]
    return sum(shares) / len(shares)


def _share(found: Tensor, wanted: Tensor) -> float:
    energy = float(torch.linalg.vector_norm(wanted, dtype=torch.float64))
    error = float(torch.linalg.vector_norm(found - wanted, dtype=torch.float64))
    share = (error / energy) ** 2 if energy else 0.0
    return share if math.isfinite(share) else 1.0  # as if nothing were left of the output


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
    """The weight with noise; it and statistics of normalisation are as before at the end."""
    layers, data = normalizations(model).values(), weight.data
    held = [t for m in layers for t in (m.running_mean, m.running_var, m.weight, m.bias)]
    matched = [(tensor, tensor.clone()) for tensor in held if tensor is not None]
    weight.data = data + noise.to(data.dtype)
    try:
        yield
    finally:
        weight.data = data
        for tensor, value in matched:
            tensor.copy_(value)
