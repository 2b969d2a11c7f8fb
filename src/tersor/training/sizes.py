# SPDX-License-Identifier: Apache-2.0
"""Return the bytes of a model's file, as it is or with other values, without changing the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tersor.coding import records
from tersor.coding.records import EncodedFactors
from tersor.factors import Factors
from tersor.io import archive_of
from tersor.nn import FactoredWeight, HeldWeight, state
from tersor.storage import classify, container
from tersor.storage.archive import Archive, Entry, Plain
from tersor.training.groups import trained_latents
from tersor.training.rounding import round_to

Latents = Mapping[FactoredWeight, Tensor]
"""Integers for weights, in place of those that they compute with."""

_LAST: WeakKeyDictionary[HeldWeight, tuple[bytes, EncodedFactors]] = WeakKeyDictionary()
"""Last factors of each weight that were encoded: a digest of their values, and the result."""


def contents(
    model: nn.Module, latents: Latents | None = None, digits: int | None = None
) -> Archive:
    """Return the contents of a model's file; each weight is encoded only if it has changed.

    Parameters
    ----------
    model
        Model, which is not changed.
    latents
        Integers for some of its weights; by default those that they compute with.
    digits
        Binary digits to which trained unfactored parameters are rounded; by default as they are.
    """
    archive = archive_of(model, encode=_encoded)
    entries = {} if digits is None else _rounded_entries(model, archive, digits)
    archive = replace(archive, entries={**archive.entries, **entries})
    return archive if latents is None else with_latents(model, archive, latents)


def with_latents(model: nn.Module, archive: Archive, latents: Latents) -> Archive:
    """Return the contents with other latents of a model, of which only these are encoded."""
    entries = dict(archive.entries)
    for name, value in state(model).items():
        if (
            isinstance(value, FactoredWeight)
            and value in latents
            and archive.original(name) == name
        ):
            coded = _last_or_encoded(value, value.to_factors(latents[value]))
            entries[name] = replace(entries[name], content=coded)
    return replace(archive, entries=entries)


def file_size(model: nn.Module) -> int:
    """Return the bytes of the file that `tersor.save` would write."""
    return container.size(contents(model))


def rounded_size(model: nn.Module, digits: int) -> int:
    """Return the bytes of the file if unfactored parameters were rounded to so many digits."""
    return container.size(contents(model, digits=digits))


def least_size(model: nn.Module, digits: int) -> int:
    """Return the bytes of the file if, besides, all trained latents were zero."""
    weights = trained_latents(model).values()
    zeros = {weight: torch.zeros_like(weight.stored_latent) for weight in weights}
    return container.size(contents(model, zeros, digits))


def rounded(model: nn.Module) -> set[str]:
    """Return the names of trained parameters that have fewer digits in the file."""
    return _rounded(model, contents(model))


@torch.no_grad()
def round_unfactored(model: nn.Module, digits: int) -> None:
    """Set unfactored tensors to their values in the file; round those that are trained."""
    archive = contents(model, digits=digits)
    for name, value in state(model).items():
        content = archive.entries[archive.original(name)].content
        if isinstance(value, Tensor) and isinstance(content, Plain):
            value.copy_(content.values)


def _rounded_entries(model: nn.Module, archive: Archive, digits: int) -> dict[str, Entry]:
    entries, values = {}, state(model)
    for name in {archive.original(name) for name in _rounded(model, archive)}:
        value, content = values[name], archive.entries[name].content
        assert isinstance(value, Tensor) and isinstance(content, Plain)
        entries[name] = classify.keep(name, round_to(value.detach(), digits), content.reason)
    return entries


def _rounded(model: nn.Module, archive: Archive) -> set[str]:
    names = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and name in archive.entries:
            content = archive.entries[archive.original(name)].content
            if isinstance(content, Plain) and content.values.dtype != parameter.dtype:
                names.add(name)
    return names


def _encoded(weight: HeldWeight) -> EncodedFactors:
    return _last_or_encoded(weight, weight.to_factors())


def _last_or_encoded(weight: HeldWeight, factors: Factors) -> EncodedFactors:
    """Return factors of a weight encoded, from the last time if their values are the same."""
    if not factors.rank:  # zeros, as `least_size` tries them, take no time
        return records.encode(factors)
    digest, last = _digest(factors), _LAST.get(weight)
    if last is None or last[0] != digest:
        last = _LAST[weight] = digest, records.encode(factors)
    return last[1]


def _digest(factors: Factors) -> bytes:
    found = hashlib.blake2b(repr((factors.scale, factors.shape, factors.dtype)).encode())
    for part in (factors.codebook, factors.latent):
        found.update(repr((tuple(part.shape), part.dtype)).encode())
        found.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()
