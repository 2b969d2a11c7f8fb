# SPDX-License-Identifier: Apache-2.0
"""Trace a model with `torch.export`, with axes of any length where the model allows them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tersor.calibration import samples
from tersor.errors import InputError
from tersor.export.packages import quiet
from tersor.nn.observe import removing
from tersor.text import some

Axes = dict[int, str]
"""Names of the axes of a tensor that may have any length, by position."""

BATCH = "batch"
"""Name of the axes that are found without being asked for."""

_ASIDES = ("For ", "consider using", "Caused by", "If you")
_HINTS = re.compile(r" For more information, run with .*| If you're using mark_dynamic.*")
"""Parts of messages of torch.export that give no reason, but settings for its developers."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a model.

    Parameters
    ----------
    args, kwargs
        The arguments, in the order of the signature.
    named
        The same by name.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: dict[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        """Return the tensors of all arguments, in the order of the graph's inputs."""
        return [leaf for leaf in tree_flatten(self.named)[0] if isinstance(leaf, Tensor)]

    def run(self, model: nn.Module) -> Any:
        """Return the output of the model."""
        with torch.no_grad():
            return model(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Traced:
    """A traced model.

    Parameters
    ----------
    program
        The graph.
    call
        The arguments with which it was traced.
    axes
        Axes of any length, for each tensor of the arguments.
    notes
        Sentences for the user.
    """

    program: ExportedProgram
    call: Call
    axes: list[Axes]
    notes: tuple[str, ...] = ()


def call_of(model: nn.Module, inputs: Any) -> Call:
    """Return the call of a model for inputs.

    Parameters
    ----------
    model
        The model.
    inputs
        One tensor, a tuple of all arguments, or a dict of arguments by name.

    Raises
    ------
    InputError
        If the inputs do not fit the signature, or hold no tensor.
    """
    args, kwargs = samples.moved(samples.arguments(model, inputs, labelled=False), model)
    call = bind(model, args, kwargs)
    if not call.tensors:
        raise InputError(
            "the inputs hold no tensor; give what the model is called with: one tensor, a tuple of "
            "all arguments, or a dict of arguments by name"
        )
    return call


def bind(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return the call with arguments in the order of the signature.

    Raises
    ------
    InputError
        If the arguments do not fit the signature.
    """
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the inputs do not fit {type(model).__name__}.forward{signature}: {error}"
        ) from None
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        variable = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        named |= value if variable else {name: value}
    return Call(bound.args, bound.kwargs, named)


def changed(model: nn.Module, call: Call, change: Callable[[list[Tensor]], list[Tensor]]) -> Call:
    """Return a call with other tensors.

    Parameters
    ----------
    model
        The model that is called.
    call
        The call.
    change
        Function that returns the new tensors for those of `Call.tensors`.
    """
    leaves, spec = tree_flatten((call.args, call.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    new = change([leaves[i] for i in places])
    for place, tensor in zip(places, new, strict=True):
        leaves[place] = tensor
    args, kwargs = tree_unflatten(leaves, spec)
    return bind(model, args, kwargs)


def trace(
    model: nn.Module, call: Call, dynamic: bool | Mapping[str, Mapping[int, str]] | None
) -> Traced:
    """Return the graph of a model.

    Parameters
    ----------
    model
        Dense model in evaluation mode.
    call
        Arguments of a typical call.
    dynamic
        Names of axes of any length by input and position. None makes the first axis of all inputs
        that have as many samples as the first one dynamic if the model allows it; False makes none.

    Raises
    ------
    InputError
        If the model cannot be traced.
    """
    tensors = call.tensors
    if isinstance(dynamic, Mapping):
        axes = _axes_by_name(call, dynamic)
        return Traced(_traced(model, call, axes), call, axes)
    static: list[Axes] = [{} for _ in tensors]
    if dynamic is False or not tensors[0].ndim:
        return Traced(_traced(model, call, static), call, static)
    batch = len(tensors[0])
    axes = [{0: BATCH} if x.ndim and len(x) == batch else {} for x in tensors]
    try:
        several = changed(model, call, lambda old: _several(old, axes))
        several.run(model)
        return Traced(_export(model, several, axes), several, axes)
    except MemoryError:
        raise
    except Exception as error:  # of torch.export or of the model's own code
        reason = reason_of(error)
    note = f"the graph takes inputs of the example's shapes only, of a batch of {batch}: {reason}"
    return Traced(_traced(model, call, static), call, static, (note,))


def _several(tensors: list[Tensor], axes: list[Axes]) -> list[Tensor]:
    """Return batches of two samples or more: torch.export takes a length of 1 for a constant."""
    return [
        torch.cat([x, x]) if 0 in own and len(x) == 1 else x
        for x, own in zip(tensors, axes, strict=True)
    ]


def _axes_by_name(call: Call, dynamic: Mapping[str, Mapping[int, str]]) -> list[Axes]:
    if unknown := [name for name in dynamic if name not in call.named]:
        raise InputError(
            f"dynamic names {some(unknown)}, but the inputs are {some(list(call.named))}"
        )
    axes: list[Axes] = []
    for name, value in call.named.items():
        own = dict(dynamic.get(name, {}))
        for leaf in tree_flatten(value)[0]:
            if not isinstance(leaf, Tensor):
                continue
            for axis in own:
                if not 0 <= axis < leaf.ndim or leaf.shape[axis] < 2:
                    raise InputError(
                        f"axis {axis} of {name!r}, of shape {tuple(leaf.shape)}, cannot be "
                        "dynamic; give an axis of the tensor, counted from 0, and an example that "
                        "has a length of 2 or more there"
                    )
            axes.append(own)
    return axes


def _traced(model: nn.Module, call: Call, axes: list[Axes]) -> ExportedProgram:
    try:
        return _export(model, call, axes)
    except MemoryError:
        raise
    except Exception as error:  # of torch.export or of the model's own code
        where = _failing(model, call, axes)
        fewer = "give fewer axes in dynamic, or " if any(axes) else ""
        raise InputError(
            f"torch.export cannot trace the model{where}: {reason_of(error)}; {fewer}write that "
            "part with operations on tensors only (torch.where or torch.cond in place of if), or "
            "export the part of the model before or after it"
        ) from error


def _export(model: nn.Module, call: Call, axes: list[Axes]) -> ExportedProgram:
    own = iter(axes)

    def dims(leaf: Any) -> dict[int, Any] | None:
        return dict.fromkeys(next(own), Dim.DYNAMIC) if isinstance(leaf, Tensor) else None

    shapes = tree_map(dims, call.named) if any(axes) else None
    call = changed(model, call, lambda old: [x.clone() for x in old])  # torch.export marks tensors
    with torch.no_grad(), quiet():
        return torch.export.export(
            model, call.args, call.kwargs, dynamic_shapes=shapes, strict=False
        )


def _failing(model: nn.Module, call: Call, axes: list[Axes]) -> str:
    """Return where tracing fails: " in NAME (CLASS)", or "" if no submodule is to blame."""
    running: list[tuple[str, nn.Module]] = []
    hooks = []
    for name, module in model.named_modules():
        if name:
            entry = (name, module)
            hooks.append(
                module.register_forward_pre_hook(lambda *_, entry=entry: running.append(entry))
            )
            hooks.append(module.register_forward_hook(lambda *_: running.pop() and None))
    with removing(hooks):
        try:
            _export(model, call, axes)
        except Exception:  # the same again; what matters is what ran then
            return f" in {running[-1][0]} ({type(running[-1][1]).__name__})" if running else ""
    return ""


def reason_of(error: BaseException) -> str:
    """Return the first lines of the error that is at the root of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -\t") for line in str(error).splitlines() if line.strip()]
    told = [_HINTS.sub("", line) for line in lines if not line.startswith(_ASIDES)]
    return f"{type(error).__name__}: {' '.join(told[:2])[:400]}"
