# SPDX-License-Identifier: Apache-2.0
"""Find the state dict in the nested dictionaries that a training script saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from tersor.errors import InputError
from tersor.storage.checkpoint.inert import Inert, holds_tensors
from tersor.storage.dtypes import is_dense
from tersor.tiling import is_tileable
from tersor.units import format_size

_DEEPEST = 8
"""Most levels of dictionaries in dictionaries that are searched."""

_SHOWN = 20

RESAVE = (
    "Objects are never rebuilt, since that could run code: where you trust the file, load it as "
    "you are used to, and save the weights: torch.save(model.state_dict(), path)"
)
"""Advice for a file that holds more than tensors."""


class StateDict(NamedTuple):
    """A dictionary with tensors, and the keys that lead to it.

    Parameters
    ----------
    path
        Keys from the outermost dictionary to this one.
    values
        The dictionary.
    """

    path: tuple[str, ...]
    values: Mapping[Any, Any]

    @property
    def key(self) -> str:
        """Return the path as users write it, joined by dots; empty for the outermost dictionary."""
        return ".".join(self.path)

    @property
    def tensors(self) -> dict[Any, Tensor]:
        """Return its tensors, detached, by their keys."""
        return {k: v.detach() for k, v in self.values.items() if isinstance(v, Tensor)}

    def has_weights(self) -> bool:
        """Return whether one of its tensors may be a weight, not only a state of something."""
        dense = [t for t in self.tensors.values() if is_dense(t)]
        return any(t.is_floating_point() and is_tileable(tuple(t.shape)) for t in dense)

    def describe(self) -> str:
        """Return its key, the number of tensors and their size, for messages."""
        size = sum(t.nbytes for t in self.tensors.values() if is_dense(t))
        return f"{self.key!r} ({len(self.tensors)} tensors, {format_size(size)})"


def chosen(content: Any, key: str | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of the chosen state dict, and the names of everything else in the file.

    Parameters
    ----------
    content
        The object that the file holds.
    key
        Key of the state dict, such as ``"generator"``. By default the only one with weights is
        taken.

    Returns
    -------
    tuple
        The tensors by name, and the names that are left out.

    Raises
    ------
    InputError
        If there is no such state dict, or there are several; the message lists them.
    """
    if not isinstance(content, Mapping):
        raise InputError(
            f"the checkpoint holds {_kind(content)}; a dictionary of tensors, "
            f"as model.state_dict() gives, is needed. {RESAVE}"
        )
    found = list(_state_dicts(content))
    picked = _picked(found, key)
    if picked is None:
        held = [f"{k} ({_kind(v).partition(' ')[2]})" for k, v in content.items()]
        raise InputError(
            f"the checkpoint holds no tensors that have names{': ' if held else ''}"
            f"{', '.join(held[:_SHOWN])}. {RESAVE}"
        )
    return _named(picked), _left_out(content, picked)


def _picked(found: list[StateDict], key: str | None) -> StateDict | None:
    if key is not None:
        matching = [state for state in found if state.key == key]
    else:
        matching = [state for state in found if state.has_weights()] or found
    if len(matching) == 1 or (not found and key is None):
        return next(iter(matching), None)
    listed = ", ".join(state.describe() for state in (matching or found)[:_SHOWN]) or "nothing"
    if key is None:
        raise InputError(
            f"the checkpoint holds several dictionaries of tensors: {listed}. Say which is to be "
            f"taken: --key {(matching[0].key or matching[-1].key)!r} (key=... in Python)"
        )
    raise InputError(
        f"the checkpoint has {'several' if matching else 'no'} dictionaries of tensors under the "
        f"key {key!r}; it holds {listed}"
    )


def _state_dicts(content: Mapping[Any, Any]) -> Iterator[StateDict]:
    """Yield each dictionary that has tensors in it, once, except the states of optimizers."""
    waiting, seen = [StateDict((), content)], set[int]()
    while waiting:
        state = waiting.pop()
        if id(state.values) in seen or "param_groups" in state.values:
            continue
        seen.add(id(state.values))
        if any(isinstance(value, Tensor) for value in state.values.values()):
            yield state
        if len(state.path) < _DEEPEST:
            waiting += [
                StateDict((*state.path, k), v)
                for k, v in reversed(list(state.values.items()))
                if isinstance(v, Mapping) and isinstance(k, str) and not k.endswith("_extra_state")
            ]


def _named(state: StateDict) -> dict[str, Tensor]:
    named = {str(k): v for k, v in state.tensors.items()}
    if len(named) < len(state.tensors):
        raise InputError("two tensors of the checkpoint have the same name")
    for name, value in state.values.items():
        if isinstance(value, Inert) and holds_tensors(value):
            raise InputError(
                f"{name} is {_kind(value)} with tensors in it, which cannot be rebuilt without "
                "running its code; make ordinary tensors of it before saving"
            )
    return named


def _left_out(content: Mapping[Any, Any], state: StateDict) -> tuple[str, ...]:
    """Return the names of everything that is not taken, level by level."""
    ignored: list[str] = []
    inside: Any = content
    for step in state.path:
        ignored += [str(k) for k in inside if k != step]
        inside = inside[step]
    return (*ignored, *(str(k) for k, v in inside.items() if not isinstance(v, Tensor)))


def _kind(value: Any) -> str:
    if isinstance(value, Inert):
        return f"a pickled {type(value).__module__}.{type(value).__qualname__}"
    return f"a {type(value).__name__}"
