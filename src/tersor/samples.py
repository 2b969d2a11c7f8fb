"""Batches of samples that a model is called with, as loaders give them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InputError, explained

NEEDED = "batches that the model can be called with are needed: tensors, tuples or dicts"
"""Of a loader."""


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """Batches of a loader, whose errors are explained."""
    with explained("the loader", NEEDED):
        yield from loader


def call(model: nn.Module, batch: Any, number: int) -> tuple[Any, int]:
    """What the model, called with a batch, returns, and the number of samples."""
    args, kwargs = _arguments(batch, _required(model))
    parameter = next(model.parameters(), None)
    if parameter is not None:
        args = tuple(_to(parameter.device, value) for value in args)
        kwargs = {name: _to(parameter.device, value) for name, value in kwargs.items()}
    with explained(f"the model, called with batch {number} of the loader,", NEEDED):
        output = model(*args, **kwargs)
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    return output, len(tensors[0]) if tensors and tensors[0].ndim else 1


def calls_of(loader: Iterable[Any]) -> list[Callable[[nn.Module], Any]]:
    """A function for each batch, which calls a model with it.

    Raises
    ------
    InputError
        If there are none.
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
    """Refuse a tensor, which could be iterated over, but in single samples."""
    if isinstance(loader, Tensor):
        raise InputError("the loader is a tensor; give a list of batches, such as [tensor]")


def _arguments(batch: Any, required: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model."""
    if isinstance(batch, tuple | list) and batch:
        if required < 2 and isinstance(batch[0], Mapping):
            batch = batch[0]
        else:
            return tuple(batch[: max(1, required)]), {}
    if isinstance(batch, Mapping):
        return (), {name: value for name, value in batch.items() if name != "labels"}
    if isinstance(batch, Tensor):
        return (batch,), {}
    empty = " without items" if isinstance(batch, tuple | list) else ""
    raise InputError(f"a batch of the loader is a {type(batch).__name__}{empty}; {NEEDED}")


def _required(model: nn.Module) -> int:
    """Positional parameters of ``forward`` that have no defaults."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _to(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
