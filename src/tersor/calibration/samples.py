# SPDX-License-Identifier: Apache-2.0
"""Call a model with the batches of samples that a loader yields.

A batch is one of these:

- a tensor, the first argument of the model's ``forward``;
- a tuple or list of positional arguments, of which ``forward`` gets as many as it takes, so that
  labels after them are left out;
- a mapping, a dataclass or a named tuple of arguments by name, without ``labels``.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tersor.errors import InputError, explained

NEEDED = "batches that the model can be called with are needed: tensors, tuples or dicts"
"""Requirement of a loader, for error messages."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader, and explain the errors that it raises."""
    with explained("the loader", NEEDED):
        yield from loader


def call(model: nn.Module, batch: Any, number: int) -> tuple[Any, int]:
    """Call the model with a batch, and return its output and the number of samples.

    Parameters
    ----------
    model
        The model. The batch is moved to its device.
    batch
        A batch as the module describes it.
    number
        Number of the batch in the loader, from 1, for error messages.

    Returns
    -------
    tuple
        Output of the model, and length of the first tensor among its arguments (1 if there is
        none, or if it has no axes).

    Raises
    ------
    InputError
        If the batch does not suit the model, or the model raises an error.
    """
    args, kwargs = moved(arguments(model, batch), model)
    with explained(f"the model, called with batch {number} of the loader,", NEEDED):
        output = model(*args, **kwargs)
    first = next(tensors_in((args, kwargs)), None)
    return output, len(first) if first is not None and first.ndim else 1


def call_whole(model: nn.Module, inputs: Any) -> Any:
    """Call the model with all inputs, which hold no labels, and return its output."""
    args, kwargs = moved(arguments(model, inputs, labelled=False), model)
    return model(*args, **kwargs)


def calls_of(loader: Iterable[Any]) -> list[Callable[[nn.Module], Any]]:
    """Return one function per batch, which calls a model with this batch.

    Parameters
    ----------
    loader
        Yields batches. All of them are held in memory.

    Returns
    -------
    list of callable
        Functions that return the result of `call`, output and number of samples.

    Raises
    ------
    InputError
        If there are no batches, or the loader is a tensor or raises an error.
    """
    check_loader(loader)
    batches = enumerate(batches_of(loader), start=1)
    calls: list[Callable[[nn.Module], Any]] = [
        partial(call, batch=batch, number=number) for number, batch in batches
    ]
    if not calls:
        raise InputError(f"the loader is empty; {NEEDED} (a generator can be used only once)")
    return calls


def check_loader(loader: Iterable[Any]) -> None:
    """Raise an error if the loader is a tensor, since iteration would yield single samples."""
    if isinstance(loader, Tensor):
        raise InputError("the loader is a tensor; give a list of batches, such as [tensor]")


def arguments(model: nn.Module, batch: Any, *, labelled: bool = True) -> Arguments:
    """Return the arguments that a model is called with for a batch.

    Parameters
    ----------
    model
        Model whose ``forward`` has the signature to match.
    batch
        A batch as the module describes it. ``labels`` are passed nevertheless if ``forward``
        requires them, or if it derives the inputs of its decoder from them.
    labelled
        Whether the batch may contain labels. If not, all of it is passed.

    Returns
    -------
    tuple
        Positional arguments (tuple) and keyword arguments (dict).

    Raises
    ------
    InputError
        If the value is not a batch, or may end with labels that ``forward`` would accept as an
        argument.

    Warns
    -----
    UserWarning
        If the batch ends with a tensor that is passed as an argument but could be a target.
    """
    parameters = _parameters(model)
    if isinstance(batch, Tensor | PackedSequence):
        return (batch,), {}
    if (by_name := named(batch, model)) is not None:
        return (), _keywords(by_name, parameters, labelled)
    if is_several(batch) and batch:
        first = batch[0]
        alone = labelled or len(batch) == 1
        if alone and isinstance(first, Mapping) and _takes(parameters, first):
            return (), _keywords(first, parameters, labelled)
        return (_positional(batch, parameters) if labelled else tuple(batch)), {}
    empty = " without items" if is_several(batch) else ""
    raise InputError(f"a batch is a {type(batch).__name__}{empty}; {NEEDED}")


def named(batch: Any, model: nn.Module) -> Mapping[str, Any] | None:
    """Return the items of a batch by name, or None if they have no names of arguments."""
    if isinstance(batch, Mapping):
        return batch
    if _is_record(batch):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    if hasattr(batch, "_asdict") and _takes(_parameters(model), batch._fields):
        return cast(Mapping[str, Any], batch._asdict())
    return None


def is_several(batch: Any) -> bool:
    """Return whether a batch is a sequence of items."""
    return isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence)


def fewest(model: nn.Module) -> int:
    """Return the number of positional arguments that ``forward`` requires, at least 1."""
    return max(1, _required(_parameters(model)))


def could_take(model: nn.Module, count: int) -> bool:
    """Return whether ``forward`` accepts ``count`` positional arguments."""
    return count <= _most(_parameters(model), count)


def moved(values: Arguments, model: nn.Module) -> Arguments:
    """Return the arguments, moved to the device of a model."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return values
    device = parameter.device
    args, kwargs = mapped(lambda value: value.to(device), values)
    return args, kwargs


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Return a copy of a nested value with a function applied to each of its tensors.

    The function is also applied to other objects with a method ``to``. Containers keep their types,
    except that an immutable mapping becomes a dict. The given value is not changed.
    """
    if isinstance(value, Tensor | PackedSequence):
        return function(value)
    if isinstance(value, MutableMapping):
        new = copy.copy(value)
        new.update({name: mapped(function, item) for name, item in value.items()})
        return new
    if isinstance(value, Mapping):
        return {name: mapped(function, item) for name, item in value.items()}
    if isinstance(value, list):
        items = copy.copy(value)
        items[:] = [mapped(function, item) for item in value]
        return items
    if isinstance(value, tuple):
        items = [mapped(function, item) for item in value]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if _is_record(value):
        new = copy.copy(value)
        for field in fields(value):
            object.__setattr__(new, field.name, mapped(function, getattr(value, field.name)))
        return new
    return function(value) if callable(getattr(value, "to", None)) else value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in a nested value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif _is_record(value):
        yield from tensors_in([getattr(value, field.name) for field in fields(value)])


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


Parameters = Mapping[str, inspect.Parameter]


def _parameters(model: nn.Module) -> Parameters:
    """Return the parameters of ``forward``, for a wrapped model those of the inner model."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while inner := getattr(
        model, "_orig_mod", model.module if isinstance(model, wrappers) else None
    ):
        model = inner
    return inspect.signature(model.forward).parameters


def _required(parameters: Parameters) -> int:
    return sum(p.kind in _POSITIONAL and p.default is p.empty for p in parameters.values())


def _most(parameters: Parameters, count: int) -> int:
    """Return how many of ``count`` positional arguments ``forward`` accepts, or its maximum."""
    kinds = [p.kind for p in parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return count
    return sum(kind in _POSITIONAL for kind in kinds)


def _takes(parameters: Parameters, names: Iterable[Any]) -> bool:
    """Return whether arguments of all these names, other than ``labels``, can be passed."""
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return True
    known = {
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    return {*names} <= known | {"labels"}


def _keywords(named: Mapping[str, Any], parameters: Parameters, labelled: bool) -> dict[str, Any]:
    """Return the arguments by name, without ``labels`` unless the model requires them."""
    labels = parameters.get("labels")
    decoder = ("decoder_input_ids", "decoder_inputs_embeds")
    made = decoder[0] in parameters and all(named.get(name) is None for name in decoder)
    if not labelled or (labels is not None and (made or labels.default is labels.empty)):
        return dict(named)
    return {name: value for name, value in named.items() if name != "labels"}


def _positional(batch: Sequence[Any], parameters: Parameters) -> tuple[Any, ...]:
    """Return as many items as ``forward`` accepts, up to its argument ``labels``."""
    least, most = max(1, _required(parameters)), max(1, _most(parameters, len(batch)))
    names = [n for n, p in parameters.items() if p.kind in _POSITIONAL]
    if "labels" in names[least:]:
        most = names.index("labels")
    if least < len(batch) <= most:  # the last item is passed, but it stands where labels stand
        name = names[len(batch) - 1] if len(batch) <= len(names) else None
        _check_last(batch[-1], name, names[: len(batch) - 1])
    return tuple(batch[:most])


def _check_last(item: Any, name: str | None, others: Sequence[str]) -> None:
    """Raise an error if the last item looks like labels, and warn if it could be a target."""
    if not isinstance(item, Tensor):
        return
    what = "one more argument" if name is None else f"its argument {name!r}"
    before = "".join(f"{other!r}: ..., " for other in others)
    remedy = f"give dicts, such as {{{before}{name or 'its name'!r}: ...}}, to say that it is one"
    kept = item.is_floating_point() or item.is_complex() or item.dtype == torch.bool
    if not kept:
        raise InputError(
            f"the batches of the loader end with a tensor of integers, which the model's forward "
            f"would take for {what}: are they labels? {remedy}, or leave labels out of the batches"
        )
    warnings.warn(
        f"the last item of the batches is passed as {what}; if it is a target, leave it out of the "
        f"batches, and if not, {remedy}",
        stacklevel=2,
    )


def logits(output: Any) -> Tensor:
    """Return the output tensor: the output itself, its ``logits``, or the first in a tuple or list.

    Raises
    ------
    InputError
        If the output has no such tensor.
    """
    named = output.get("logits") if isinstance(output, Mapping) else None
    for value in (output, named, getattr(output, "logits", None)):
        if isinstance(value, Tensor):
            return value
    if isinstance(output, tuple | list) and output:
        return logits(output[0])
    raise InputError(
        f"the model returned a {type(output).__name__}; a tensor, or something with a tensor "
        "called logits, is needed"
    )
