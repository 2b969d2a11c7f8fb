"""Names of tensors without what wrappers around a model put into them."""

from __future__ import annotations

from dataclasses import replace

from tersor.errors import InputError
from tersor.storage.checkpoint.source import Content

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that torch.compile, FSDP and activation checkpointing put in, at any place."""

_PARALLEL = "module."
"""What DataParallel and its kin put before every name."""

_SHOWN = 10


def plain(content: Content, prefix: str | None = None) -> Content:
    """The same tensors by the names that they have in the model itself.

    Parameters
    ----------
    content
        Tensors by the names of the files.
    prefix
        Take only tensors whose names start with this, and drop it. By default drop what data
        parallelism puts before every name, if it is before every name.

    Raises
    ------
    InputError
        If no name starts with the prefix.
    """
    new = {name: _without_wrappers(name) for name in content.stored}
    if len(set(new.values())) < len(new):  # whatever those names mean, they tell tensors apart
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
    """Tensors by new names, those without one left out."""
    old = {name: former for former, name in new.items()}
    first: dict[str, str] = {}  # of tied tensors, the first that is taken
    aliases = {}
    for former, name in new.items():
        leader = first.setdefault(content.aliases.get(former, former), name)
        if leader != name:
            aliases[name] = leader
    return replace(
        content,
        stored={name: content.stored[former] for name, former in old.items()},
        load=lambda name: content.load(old[name]),
        aliases=aliases,
    )
