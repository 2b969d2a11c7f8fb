# SPDX-License-Identifier: Apache-2.0
"""Make the ordinary layers that compute with the parts of a split weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tersor.errors import InputError
from tersor.lowrank.forms import FORMS, Kernels, Ranks

Splittable = nn.Linear | nn.Conv1d | nn.Conv2d

Plan = Mapping[str, tuple[str, Ranks]]
"""Form and ranks by the name of the module that is replaced."""

_AXES = {"inputs": (1, 0), "outputs": (0, 1), "tucker": (1, 0, 1)}
"""Which of the layers have the kernel (0) and which are 1x1 (1)."""


def as_kernel(weight: Tensor) -> Tensor:
    """Return a weight in float64 on the CPU, that of a linear layer as a kernel of one position."""
    kernel = weight.detach().to("cpu", torch.float64)
    return kernel[..., None] if kernel.dim() == 2 else kernel


def groups_of(layer: nn.Module) -> int:
    """Return the number of groups of a convolution; 1 for other layers."""
    return int(getattr(layer, "groups", 1))


def shapes_of(layer: Splittable, form: str, ranks: Ranks) -> list[tuple[int, ...]]:
    """Return the shapes of the weights that a layer's weight is split into."""
    outs, ins, *kernel = layer.weight.shape
    ones, rank = (1,) * len(kernel), ranks[0]
    if form == "outputs":
        return [(rank, ins, *kernel), (outs, rank, *ones)]
    if form == "inputs":
        return [(rank, ins, *ones), (outs, rank, *kernel)]
    if form == "tucker":
        return [(rank, ins, *ones), (ranks[1], rank, *kernel), (outs, ranks[1], *ones)]
    first = outs if form == "depthwise" else rank
    second = 1 if form == "depthwise" else rank
    return [(first, ins, kernel[0], 1), (outs, second, 1, kernel[1])]


def replacement(layer: Splittable, form: str, kernels: Kernels | None, ranks: Ranks) -> nn.Module:
    """Return the layers that take the place of one, in its type, on its device.

    Parameters
    ----------
    layer
        Layer to replace.
    form
        Name of the form.
    kernels
        Their weights; None leaves them as torch initialises them.
    ranks
        Ranks of the form.

    Returns
    -------
    Module
        An ordinary `nn.Sequential`.
    """
    shapes = shapes_of(layer, form, ranks)
    options = [_geometry(layer, form, at) for at in range(len(shapes))]
    parts = [
        _layer(layer, shape, geometry, last=at == len(shapes) - 1)
        for at, (shape, geometry) in enumerate(zip(shapes, options, strict=True))
    ]
    with torch.no_grad():
        for part, kernel in zip(parts, kernels or [], strict=kernels is not None):
            part.weight.copy_(kernel.view_as(part.weight))
        if layer.bias is not None:
            cast(Tensor, parts[-1].bias).copy_(layer.bias)
    made = nn.Sequential(*parts)
    for parameter in made.parameters():
        parameter.requires_grad_(layer.weight.requires_grad)
    return made.train(layer.training)


def _layer(
    layer: Splittable, shape: Sequence[int], geometry: Mapping[str, Any], *, last: bool
) -> Splittable:
    bias = last and layer.bias is not None
    like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        return nn.Linear(shape[1], shape[0], bias=bias, **like)
    groups = groups_of(layer)
    return type(layer)(shape[1] * groups, shape[0], bias=bias, groups=groups, **geometry, **like)


def _geometry(layer: Splittable, form: str, at: int) -> dict[str, Any]:
    """Return kernel, stride, padding and dilation of one of the layers."""
    if isinstance(layer, nn.Linear):
        return {}
    axes = len(layer.kernel_size)
    mode = {"padding_mode": layer.padding_mode}
    if form in _AXES:
        if _AXES[form][at]:
            return {"kernel_size": (1,) * axes}
        return _along(layer, range(axes)) | mode
    return _along(layer, [at]) | mode


def _along(layer: nn.Conv1d | nn.Conv2d, axes: Sequence[int]) -> dict[str, Any]:
    """Return the geometry of a layer along some axes, and 1x1 along the others."""

    def of(values: Sequence[int], rest: int) -> tuple[int, ...]:
        return tuple(v if axis in axes else rest for axis, v in enumerate(values))

    padding: Any = layer.padding
    return {
        "kernel_size": of(layer.kernel_size, 1),
        "stride": of(layer.stride, 1),
        "dilation": of(layer.dilation, 1),
        "padding": padding if isinstance(padding, str) else of(padding, 0),
    }


def restructure(model: nn.Module, plan: Mapping[str, tuple[str, Sequence[int]]]) -> None:
    """Replace layers of a model by layers of low rank, in place, without weights.

    A model that `decompose` changed has other layers than the code that makes it. Make it anew,
    call this, and load its weights.

    Parameters
    ----------
    model
        Model as its code makes it.
    plan
        Form and ranks by name of a module: the ``plan`` of what `decompose` returned.

    Raises
    ------
    InputError
        If the model has no such layers, or they cannot be split so. It is then unchanged.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    >>> tersor.lowrank.restructure(model, {"0": ("outputs", [8])})
    >>> model
    Sequential(
      (0): Sequential(
        (0): Linear(in_features=64, out_features=8, bias=False)
        (1): Linear(in_features=8, out_features=64, bias=True)
      )
    )
    """
    modules = dict(model.named_modules())
    made = {name: _planned(modules.get(name), name, *way) for name, way in plan.items()}
    for name, module in made.items():
        replace(model, name, module)


def _planned(layer: nn.Module | None, name: str, form: str, ranks: Sequence[int]) -> nn.Module:
    if not isinstance(layer, Splittable):
        kind = "no module" if layer is None else f"a {type(layer).__name__}"
        raise InputError(
            f"the plan splits {name!r}, but the model has {kind} of that name; give the model as "
            "its code makes it, and the plan of this model"
        )
    shape, groups = tuple(layer.weight.shape), groups_of(layer)
    known = FORMS.get(form)
    if known is None or not known.suits(shape, groups):
        raise InputError(
            f"{name!r} cannot be split in the form {form!r}: its weight has the shape {shape} in "
            f"{groups} groups; forms are {', '.join(FORMS)}"
        )
    most = known.most(shape)
    if len(ranks) != len(most) or not all(0 < r <= m for r, m in zip(ranks, most, strict=True)):
        raise InputError(f"{name!r} has ranks {list(ranks)} in the plan, at most {list(most)} fit")
    return replacement(layer, form, None, tuple(ranks))


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of that of this name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
