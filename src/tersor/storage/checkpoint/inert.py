# SPDX-License-Identifier: Apache-2.0
"""Replace the unknown classes and functions that a checkpoint names by classes that do nothing.

A training script often saves objects beside the weights, such as its options, whose classes PyTorch
does not know to be safe. PyTorch's own restricted reader then gets a stand-in class that does
nothing, under the name of the unknown class. So no unknown code is imported or run, and the weights
can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


class Inert:
    """Stand-in for an unknown class: it stores its arguments and does nothing with them."""

    parts: list[Any]

    def __new__(cls, *args: Any) -> Inert:  # noqa: D102
        self = super().__new__(cls)
        self.parts = list(args)
        return self

    def __init__(self, *args: Any) -> None:
        """Ignore the arguments, which `__new__` has stored."""

    def __setstate__(self, state: Any) -> None:
        self.parts.append(state)


def standing_in(names: Iterable[str]) -> AbstractContextManager[Any]:
    """Return a context in which PyTorch's restricted reader uses stand-ins for these names.

    Parameters
    ----------
    names
        Full names of classes and functions, such as ``"argparse.Namespace"``.
    """
    known: list[Any] = [(_stand_in(name), name) for name in names]
    return torch.serialization.safe_globals(known)


def _stand_in(name: str) -> type[Inert]:
    """Return a stand-in class with the same name as the unknown class, also in error messages."""
    module, _, own = name.rpartition(".")
    return type(own, (Inert,), {"__module__": module})


def holds_tensors(value: Any) -> bool:
    """Return whether a value, its parts or the arguments of stand-ins in it are tensors."""
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
