# SPDX-License-Identifier: Apache-2.0
"""Measure what each layer costs, split in each way, and what error that makes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from tersor.calibration.calibrate import Calibration
from tersor.calibration.samples import call
from tersor.lowrank.forms import FORMS, Ranks
from tersor.lowrank.layers import Splittable, as_kernel, groups_of, shapes_of
from tersor.nn.observe import observing, removing

_GROWTH = 1.05
"""Ratio of neighbouring ranks that are tried."""

_FEWEST = 1024
"""Weights with fewer elements are not split: two layers would cost more time than one."""


@dataclass(frozen=True)
class Way:
    """One way to compute with a layer.

    Parameters
    ----------
    form
        Name of the form; ``dense`` is the layer as it is.
    ranks
        Its ranks.
    operations
        Multiplications and additions for a sample, as pairs.
    parameters
        Number of weights, without the bias.
    error
        Squared error of the model's output that it causes, as a share.
    """

    form: str
    ranks: Ranks
    operations: int
    parameters: int
    error: float


@dataclass
class Sizes:
    """Positions at which a layer is applied for a sample, before and after a convolution.

    Parameters
    ----------
    before, after
        For each call, the lengths of the axes of the input and of the output. A linear layer has
        one axis.
    """

    before: list[tuple[int, ...]] = field(default_factory=list)
    after: list[tuple[int, ...]] = field(default_factory=list)

    def operations(self, shapes: Sequence[Sequence[int]], form: str) -> int:
        """Return the operations of layers of these shapes in the place of the one observed."""
        total = 0
        for before, after in zip(self.before, self.after, strict=True):
            for at, shape in enumerate(shapes):
                total += math.prod(shape) * math.prod(_positions(before, after, form, at))
        return total


def _positions(
    before: tuple[int, ...], after: tuple[int, ...], form: str, at: int
) -> tuple[int, ...]:
    """Return the lengths of the axes of the output of one of the layers."""
    if at == 0 and form in ("inputs", "tucker"):
        return before
    if at == 0 and form in ("spatial", "depthwise"):
        return after[:1] + before[1:]
    return after


def splittable(model: nn.Module) -> tuple[dict[str, Splittable], dict[str, str]]:
    """Return the layers that can be split by name, and the reasons why others cannot.

    Of the others, only those with a matrix are named.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    found, left = dict[str, Splittable](), dict[str, str]()
    for module, called in names.items():
        weight = module._parameters.get("weight")
        if weight is None or weight.dim() < 2:
            continue
        shared = len(called) > 1 or len(owners[id(weight)]) > 1
        reason = _reason(module, called[0], weight, shared)
        if reason is None:
            found[called[0]] = cast(Splittable, module)
        else:
            left[called[0]] = reason
    return found, left


def _reason(module: nn.Module, name: str, weight: Tensor, shared: bool) -> str | None:
    if type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d):
        return f"a {type(module).__name__} is not split"
    if not name:
        return "it is the whole model, and has no place to be put back to"
    if shared:
        return "its weight has several uses"
    if not weight.is_floating_point() or weight.is_meta:
        return f"its weight is of {weight.dtype}, on {weight.device}"
    if weight.numel() < _FEWEST:
        return f"it has fewer than {_FEWEST} weights"
    shape = tuple(as_kernel(weight).shape)
    if not any(form.suits(shape, groups_of(module)) for form in FORMS.values()):
        return f"a convolution with {groups_of(module)} groups and this kernel has no low rank"
    return None


def sizes_of(model: nn.Module, batch: Any) -> dict[nn.Module, Sizes]:
    """Return the positions of all linear layers and convolutions for a sample of a batch."""
    layers = [m for m in model.modules() if isinstance(m, Splittable)]
    found: dict[nn.Module, Sizes] = {layer: Sizes() for layer in layers}

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        axes = len(cast(nn.Conv2d, module).kernel_size) if not isinstance(module, nn.Linear) else 0
        if axes:
            found[module].before.append(tuple(args[0].shape[-axes:]))
            found[module].after.append(tuple(output.shape[-axes:]))
        else:
            found[module].before.append((output.numel() // output.shape[-1],))
            found[module].after.append((output.numel() // output.shape[-1],))

    hooks = removing([layer.register_forward_hook(note) for layer in layers])
    with torch.no_grad(), observing(model, {}), hooks:
        _, samples = call(model, batch, 1)
    for layer, sizes in found.items():
        if isinstance(layer, nn.Linear):  # its positions are those of all samples
            sizes.before = sizes.after = [(-(-n // samples),) for (n,) in sizes.after]
    return found


def ways(
    name: str,
    layer: Splittable,
    sizes: Sizes | None,
    calibration: Calibration | None,
    forms: Sequence[str],
) -> list[Way]:
    """Return the ways to compute with a layer, the dense one first.

    Parameters
    ----------
    name
        Name of the layer's weight.
    layer
        The layer.
    sizes
        Where it is applied; without, operations are 0.
    calibration
        Metric of its inputs and importance. Without, all layers count alike, by the share of the
        energy of their weights that is lost.
    forms
        Names of the forms to try.

    Returns
    -------
    list of Way
        Those that save operations and parameters, with ranks that grow by a twentieth.
    """
    weight = as_kernel(layer.weight)
    metric, scale = _error_of(name, weight, calibration)
    dense = _way(layer, sizes, "dense", (), 0.0)
    found = [dense]
    for form in forms:
        known = FORMS[form]
        if not known.suits(tuple(weight.shape), groups_of(layer)):
            continue
        split = known.split(weight, metric)
        for ranks in _ladder(known.most(tuple(weight.shape))):
            way = _way(layer, sizes, form, ranks, 0.0)
            if way.parameters >= dense.parameters or way.operations > dense.operations:
                continue
            rest = (weight - known.composed(split(ranks))).flatten(1)
            found.append(_way(layer, sizes, form, ranks, scale * squared(rest, metric)))
    return found


def squared(rows: Tensor, metric: Tensor | None) -> float:
    """Return ``tr(E H Eᵀ)`` for rows E, or the sum of squares; ``H`` may be smaller, for groups."""
    if metric is None or metric.shape[0] != rows.shape[1]:
        return float(rows.square().sum().item())
    return float(((rows @ metric) * rows).sum().item())


def _error_of(
    name: str, weight: Tensor, calibration: Calibration | None
) -> tuple[Tensor | None, float]:
    """Return the metric of errors of a weight, and by how much a squared error counts."""
    if calibration is None or name not in calibration.importance:
        metric = None if calibration is None else calibration.metric(name)
        metric = None if metric is None else metric.to(torch.float64)
        return metric, 1 / max(squared(weight.flatten(1), metric), 1e-300)
    metric = calibration.metric(name)
    return None if metric is None else metric.to(torch.float64), calibration.importance[name]


def _way(layer: Splittable, sizes: Sizes | None, form: str, ranks: Ranks, error: float) -> Way:
    shapes = [tuple(layer.weight.shape)] if form == "dense" else shapes_of(layer, form, ranks)
    operations = 0 if sizes is None else sizes.operations(shapes, form)
    return Way(form, ranks, operations, sum(math.prod(shape) for shape in shapes), error)


def _ladder(most: Ranks) -> Iterator[Ranks]:
    """Yield ranks from 1 to the largest; of pairs, those that keep about equal shares."""
    rungs = [1]
    while rungs[-1] < max(most):
        rungs.append(max(rungs[-1] + 1, int(rungs[-1] * _GROWTH)))
    seen = set()
    for rung in rungs:
        share = min(1.0, rung / max(most))
        for lean in (0.75, 1.0, 1.33) if len(most) > 1 else (1.0,):
            first = min(most[0], max(1, round(share * lean * most[0])))
            ranks = (first, *(min(m, max(1, round(share / lean * m))) for m in most[1:]))
            if ranks not in seen:
                seen.add(ranks)
                yield ranks
