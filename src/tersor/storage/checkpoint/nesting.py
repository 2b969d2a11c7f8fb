"""The state dict in what a training script saved."""

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
"""Dictionaries in dictionaries that are looked into."""

_SHOWN = 20

RESAVE = (
    "Objects are never rebuilt, since that could run code: where you trust the file, load it as "
    "you are used to, and save the weights: torch.save(model.state_dict(), path)"
)
"""What to do about a file with more than tensors."""


class StateDict(NamedTuple):
    """Tensors by name, and the keys that lead to them."""

    path: tuple[str, ...]
    values: Mapping[Any, Any]

    @property
    def key(self) -> str:
        """What a user calls it; empty for the outermost dictionary."""
        return ".".join(self.path)

    @property
    def tensors(self) -> dict[Any, Tensor]:
        """Its tensors, detached, by the keys in it."""
        return {k: v.detach() for k, v in self.values.items() if isinstance(v, Tensor)}

    def has_weights(self) -> bool:
        """Whether a tensor in it may be a weight, and not only a state of something."""
        dense = [t for t in self.tensors.values() if is_dense(t)]
        return any(t.is_floating_point() and is_tileable(tuple(t.shape)) for t in dense)

    def describe(self) -> str:
        """Its key, and how much is in it."""
        size = sum(t.nbytes for t in self.tensors.values() if is_dense(t))
        return f"{self.key!r} ({len(self.tensors)} tensors, {format_size(size)})"


def chosen(content: Any, key: str | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors of the state dict that is meant, and the names of what else is there.

    Parameters
    ----------
    content
        What a file holds.
    key
        Of the state dict, or None for the only one with weights.

    Raises
    ------
    InputError
        If there is none, or there are several; the message lists them.
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
    """All dictionaries with tensors in them, each once, but for the states of optimizers."""
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
    """Names of what is not taken, level by level."""
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
