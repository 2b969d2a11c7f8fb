# SPDX-License-Identifier: Apache-2.0
"""Remove from tensor names the parts that wrappers around a model add."""

from __future__ import annotations

from dataclasses import replace

from tersor.errors import InputError
from tersor.storage.checkpoint.source import Content

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that torch.compile, FSDP and activation checkpointing add anywhere in a name."""

_PARALLEL = "module."
"""Prefix that DataParallel and similar wrappers add to every name."""

_SHOWN = 10


def plain(content: Content, prefix: str | None = None) -> Content:
    """Return the same tensors under the names that they have in the model itself.

    Parameters
    ----------
    content
        Tensors by their names in the files.
    prefix
        Take only tensors whose names start with this, and drop it. By default ``module.`` is
        dropped, which data parallelism adds, if every name starts with it.

    Raises
    ------
    InputError
        If no name starts with the prefix.
    """
    new = {name: _without_wrappers(name) for name in content.stored}
    if len(set(new.values())) < len(new):  # names must stay different, so keep the parts
        new = {name: name for name in content.stored}
    if prefix is None:
        while new and all(name.startswith(_PARALLEL) for name in new.values()):
            new = {old: name.removeprefix(_PARALLEL) for old, name in new.items()}
        return _renamed(content, new)
    taken = {o: n.removeprefix(prefix) for o, n in new.items() if n.startswith(prefix)}
    if not taken:
        starts = list(dict.fromkeys(name.partition(".")[0] + "." for name in new.values()))
        raise InputError(
            f"no name of a tensor starts with {prefix!r}; names start with "
            f"{', '.join(starts[:_SHOWN])}{', ...' if len(starts) > _SHOWN else ''}"
        )
    left = tuple(name for old, name in new.items() if old not in taken)
    return replace(_renamed(content, taken), ignored=(*content.ignored, *left))


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _renamed(content: Content, new: dict[str, str]) -> Content:
    """Return the tensors under new names, without those that have no new name."""
    old = {name: former for former, name in new.items()}
    first: dict[str, str] = {}  # new name of the first of the tied tensors that is taken
    aliases = {}
    for former, name in new.items():
        leader = first.setdefault(content.aliases.get(former, former), name)
        if leader != name:
            aliases[name] = leader
    return replace(
        content,
        stored={name: content.stored[former] for name, former in old.items()},
        load=lambda name: content.load(old[name]),
        view=lambda name: content.rows(old[name]),
        aliases=aliases,
    )
