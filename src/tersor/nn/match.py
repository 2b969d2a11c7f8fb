# SPDX-License-Identifier: Apache-2.0
"""Compare the names, shapes and ties of a model with those of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.nn.held import HeldWeight
from tersor.storage.archive import Contents
from tersor.storage.checkpoint import shared
from tersor.text import some

Values = Mapping[str, HeldWeight | Tensor]
"""Weights and tensors of a model, by name."""


def check_match(contents: Contents, values: Values, kind: str, strict: bool) -> None:
    """Raise an `InputError` if contents do not fit a model, as described for `tersor.load`.

    Parameters
    ----------
    contents
        A file or an archive.
    values
        What the model holds, by name; see `tersor.nn.convert.state`.
    kind
        Name of the class of the model.
    strict
        Whether both must have the same names.
    """
    found = _differences(contents, values)
    if not strict:
        found = {verb: names for verb, names in found.items() if verb not in (_LACKS, _HAS)}
    problems = [f"the model {verb} {some(names)}" for verb, names in found.items() if names]
    if problems:
        raise InputError(
            f"the file does not fit a {kind}: {'; '.join(problems)}. Give the "
            "architecture that was saved, or strict=False to leave alone what only one of them has"
        )


_LACKS, _HAS = "lacks", "has beside those in the file"


def _differences(contents: Contents, values: Values) -> dict[str, list[str]]:
    """Return names by what is wrong with them; the keys are words for the message."""
    shapes = contents.shapes
    # A tied weight is present if it is present under one of its names.
    tied = aliases_of(values)
    common = [name for name in shapes if name in values]
    present = {tied.get(name, name) for name in common}
    return {
        _LACKS: [n for n in shapes if n not in values],
        _HAS: [n for n in values if n not in shapes and tied.get(n, n) not in present],
        "differs in": [
            f"{n} {shapes[n]} in the file, {tuple(values[n].shape)} in the model"
            for n in common
            if shapes[n] != tuple(values[n].shape)
        ],
        "ties what is not the same in the file:": [
            f"{first} and {other}"
            for first, others in distinct(tied, shapes).items()
            for other in others
            if not _same(contents, first, other)
        ],
        "holds factors, from another file, of what is dense in this one:": [
            n for n in common if isinstance(values[n], HeldWeight) and not contents.is_factored(n)
        ],
    }


def _same(contents: Contents, a: str, b: str) -> bool:
    """Return whether two names stand for the same tensor or for equal tensors."""
    return contents.original(a) == contents.original(b) or torch.equal(
        contents.tensor(a), contents.tensor(b)
    )


def distinct(aliases: Mapping[str, str], names: Iterable[str]) -> dict[str, list[str]]:
    """Return the first name of each tensor of a model, with the other names that are tied to it."""
    first: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for name in names:
        leader = first.setdefault(aliases.get(name, name), name)
        others = groups.setdefault(leader, [])
        if name != leader:
            others.append(name)
    return groups


def aliases_of(entries: Values) -> dict[str, str]:
    """Return the names of entries that are the same object or memory as an earlier one.

    Parameters
    ----------
    entries
        Weights and tensors by name.

    Returns
    -------
    dict
        For each such name, the name of the first such entry.
    """
    aliases = shared({name: t for name, t in entries.items() if isinstance(t, Tensor)})
    first: dict[int, str] = {}
    for name, value in entries.items():
        if (original := first.setdefault(id(value), name)) != name:
            aliases.setdefault(name, aliases.get(original, original))
    return aliases
