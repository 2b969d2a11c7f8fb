# SPDX-License-Identifier: Apache-2.0
"""Fill a model with the tensors of a file, and check that the model holds them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tersor.errors import InputError, explained
from tersor.factors import Factors
from tersor.nn.checks import check_references, check_weight, holding_problem
from tersor.nn.convert import replace_weight, state, survey
from tersor.nn.held import HeldWeight
from tersor.nn.match import Values, aliases_of, check_match, distinct
from tersor.nn.sites import BufferSite, Site
from tersor.storage.archive import Contents, as_tensor
from tersor.text import some


@torch.no_grad()
def fill(
    model: nn.Module, contents: Contents, *, assign: bool = False, strict: bool = True
) -> None:
    """Put contents into a model, one tensor at a time.

    Weights that are factored in the contents become
    factors in the model, except in modules that cannot hold factors.

    Parameters
    ----------
    model
        The model, which is changed in place.
    contents
        A file or an archive.
    assign
        Replace the model's tensors by those of the contents, with their data types. By default
        values are copied. Tensors on the meta device are always replaced, with the types that they
        have in the model.
    strict
        Whether the contents must have all tensors of the model.

    Raises
    ------
    InputError
        If names or shapes differ, or a tensor would be left on the meta device; the model is then
        unchanged. Also if the model does not hold the contents at the end, because its own code
        changes loaded tensors.
    """
    entries, found = survey(model)
    check_match(contents, entries, type(model).__name__, strict)
    groups = distinct(aliases_of(entries), [n for n in contents.shapes if n in entries])
    check_values(found, groups)
    places, others = _split(entries, found, contents, groups)
    replaced = [s.weight for of_one in others.values() for s in of_one]
    replaced = [w for w in replaced if _is_replaced(w, assign)]
    check_references(model, [*replaced, *(s.weight for held in places.values() for s in held)])
    foreign = {name for name in groups if name not in places and name not in others}
    uses: dict[str, list[str]] = {}  # names in the model, by the name of the tensor in the contents
    for name in groups:
        uses.setdefault(contents.original(name), []).append(name)
    del entries, found, replaced  # otherwise replaced weights would stay in memory
    given: dict[str, Tensor] = {}
    filled: dict[str, HeldWeight | int] = {}
    for original, value in contents.stream(uses):
        for name in uses[original]:
            if name in places:
                assert isinstance(value, Factors)
                filled[name] = replace_weight(
                    places.pop(name), value, value.dtype if assign else None
                )
            elif name in foreign:
                given[name] = as_tensor(value)
                filled[name] = checksum(given[name])
            else:
                filled[name] = checksum(_put(others[name], as_tensor(value), assign))
    if given:
        with explained("the model's load_state_dict", "it gave these tensors, and must take them"):
            model.load_state_dict(given, strict=False)
    check_filled(model, filled, strict)


def _split(
    entries: Values,
    tensors: Mapping[str, Site | BufferSite],
    contents: Contents,
    groups: Mapping[str, Sequence[str]],
) -> tuple[dict[str, list[Site]], dict[str, list[Site | BufferSite]]]:
    """Return the sites of weights that become factors, and of other tensors, by their first names.

    A name in neither of them is not a tensor of a module; a module computes it for its
    ``state_dict``.
    """
    sites: dict[int, list[Site | BufferSite]] = {}
    for site in tensors.values():
        sites.setdefault(id(site.weight), []).append(site)
    factored: dict[str, list[Site]] = {}
    others: dict[str, list[Site | BufferSite]] = {}
    for name, more in groups.items():
        objects = dict.fromkeys(id(entries[n]) for n in (name, *more))
        found = [site for number in objects for site in sites.get(number, ())]
        held = [s for s in found if isinstance(s, Site) and not holding_problem(s)]
        if contents.is_factored(name) and held and len(held) == len(found):
            check_weight(name, held[0].weight, contents.shapes[name])
            factored[name] = held
        elif found:
            others[name] = found
    return factored, others


def _is_replaced(old: HeldWeight | Tensor, assign: bool) -> bool:
    """Return whether another tensor replaces this one, because values cannot be copied into it."""
    if not isinstance(old, Tensor):
        return False
    repeats = any(step == 0 and n > 1 for n, step in zip(old.shape, old.stride(), strict=True))
    return assign or old.is_meta or repeats  # expanded tensors repeat their elements


def _put(sites: Sequence[Site | BufferSite], value: Tensor, assign: bool) -> Tensor:
    """Copy a tensor to its sites in a model, or replace the tensor there; return the new values."""
    old = sites[0].weight
    assert isinstance(old, Tensor)  # names and shapes fit
    if not _is_replaced(old, assign):
        old.copy_(value)
        return value.to(old.dtype)
    value = value if assign else value.to(old.dtype)
    parameter = isinstance(old, nn.Parameter)
    new = nn.Parameter(value, requires_grad=old.requires_grad) if parameter else value
    for site in sites:
        setattr(site.module, site.attribute, new)
    return value


def check_values(found: Mapping[str, Site | BufferSite], names: Iterable[str]) -> None:
    """Refuse a model with tensors on the meta device that would get no values.

    Parameters
    ----------
    found
        Uses of all tensors of the model, by name.
    names
        Names of the tensors that will get values.

    Raises
    ------
    InputError
        If such a tensor is not among the names.
    """
    given = {id(found[name].weight) for name in names if name in found}
    lost = [n for n, s in found.items() if _is_meta(s.weight) and id(s.weight) not in given]
    if lost:
        raise InputError(
            f"{some(lost)}: on the meta device, and the file has no values for it; make the model "
            "so that this has values (buffers that are not persistent are in no file), as with "
            "accelerate.init_empty_weights(include_buffers=False)"
        )


def _is_meta(value: HeldWeight | Tensor) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def check_filled(
    model: nn.Module, filled: Mapping[str, HeldWeight | int], strict: bool = True
) -> None:
    """Refuse a model that does not hold the tensors it was given, or was not given all of them.

    Parameters
    ----------
    model
        The model after it was filled.
    filled
        By name, the factors it was given, or the `checksum` of the tensor it was given.
    strict
        Whether it must have been given all its tensors.

    Raises
    ------
    InputError
        If a tensor differs or is missing.
    """
    now = state(model)
    aliases = aliases_of(now)
    given = {aliases.get(name, name) for name in filled}
    left = [name for name in now if aliases.get(name, name) not in given] if strict else []
    other = [name for name, value in filled.items() if not _holds(now.get(name), value)]
    if left or other:
        problem = f"{some(other)} differ from the file" if other else f"{some(left)} were not given"
        raise InputError(
            f"a {type(model).__name__} does not hold what was loaded: {problem}; its own code "
            "changes what is loaded, so that it cannot be loaded in place: load the tensors with "
            "tersor.load_state_dict, and give them to the model yourself"
        )


def _holds(now: HeldWeight | Tensor | None, value: HeldWeight | int) -> bool:
    if isinstance(value, HeldWeight):
        return now is value
    return isinstance(now, Tensor) and checksum(now) == value


def checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of the values, the type and the shape of a tensor."""
    values = tensor.detach().cpu().contiguous()
    start = zlib.crc32(repr((tuple(values.shape), values.dtype)).encode())
    return zlib.crc32(values.reshape(-1).view(torch.uint8).numpy().data, start)
