"""Stand-ins for the classes and functions of strangers that a checkpoint names.

What a training script saved beside the weights, such as its options, is often an object of a class
that PyTorch does not know to be safe. PyTorch's own restricted reader then gets a stand-in, which
does nothing, under the name of that class: no code of a stranger is imported or run, and the
weights can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


class Inert:
    """Takes whatever it is made of, and does nothing with it."""

    parts: list[Any]

    def __new__(cls, *args: Any) -> Inert:  # noqa: D102
        self = super().__new__(cls)
        self.parts = list(args)
        return self

    def __init__(self, *args: Any) -> None:
        """Accept what `__new__` has taken."""

    def __setstate__(self, state: Any) -> None:
        self.parts.append(state)


def standing_in(names: Iterable[str]) -> AbstractContextManager[Any]:
    """Have PyTorch's restricted reader take stand-ins for these names, while in the context."""
    known: list[Any] = [(_stand_in(name), name) for name in names]
    return torch.serialization.safe_globals(known)


def _stand_in(name: str) -> type[Inert]:
    """A class that goes by the name of the one that it stands for, in messages too."""
    module, _, own = name.rpartition(".")
    return type(own, (Inert,), {"__module__": module})


def holds_tensors(value: Any) -> bool:
    """Whether a stand-in, or what it is made of, has tensors in it."""
    waiting, seen = [value], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            return True
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Inert):
            waiting += value.parts
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return False
