# SPDX-License-Identifier: Apache-2.0
"""Give the tensors of a tersor file to transformers, and then their factors to its model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import WeightRenaming, rename_source_key

from tersor.errors import InputError
from tersor.factors import Factors
from tersor.nn import HeldWeight, state
from tersor.nn.checks import holding_problem
from tersor.nn.convert import replace_weight
from tersor.nn.fill import checksum
from tersor.nn.owner import detach
from tersor.nn.sites import Site, find_tensors
from tersor.storage import dtypes
from tersor.storage.opened import OpenFile
from tersor.text import some


class LazyTensor:
    """A dense tensor of a file that is decoded when it is indexed, like a slice of safetensors.

    Parameters
    ----------
    file, name
        The file, and the name of the tensor in it.
    awaited
        Whether the tensor, where it is asked for as a whole, is NaN everywhere and takes no memory,
        because its factors will replace it.
    """

    def __init__(self, file: OpenFile, name: str, dtype: torch.dtype, awaited: bool) -> None:
        self._file, self._name, self._dtype, self._awaited = file, name, dtype, awaited

    def get_dtype(self) -> str:
        """Return the name of the data type in safetensors, such as ``"F32"``."""
        return dtypes.NAMES[self._dtype]

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self._file.shapes[self._name])

    def __getitem__(self, index: Any) -> Tensor:
        if self._awaited and index is Ellipsis:
            return torch.full((), torch.nan, dtype=self._dtype).expand(self.get_shape())
        return self._file.tensor(self._name)[index]


def lazy_state_dict(model: Any, file: OpenFile, conversions: Sequence[Any]) -> dict[str, Any]:
    """Return the dense tensors of a file by name, each decoded when it is needed.

    Parameters
    ----------
    model
        The model, with or without values.
    file
        The file.
    conversions
        What transformers does with the tensors. If it only renames them, those that are factored
        are NaN, for `insert_factors`; but not those that the model ties, which are compared.
    """
    awaited = set[str]()
    if all(isinstance(c, WeightRenaming) for c in conversions):
        ties = model.all_tied_weights_keys
        tied = {*ties.keys(), *ties.values()}
        names = _names_in(model, file, conversions)
        awaited = {name for name, renamed in names.items() if renamed not in tied}
    return {
        field.name: LazyTensor(file, field.name, field.dtype, field.name in awaited)
        for field in file.layout.fields
    }


@torch.no_grad()
def insert_factors(model: Any, file: OpenFile) -> None:
    """Replace the dense weights of a model by the factors that they are decoded from.

    Weights that transformers has changed while it loaded them, as where it stacks the matrices of
    experts, stay dense.

    Parameters
    ----------
    model
        Model of transformers, with the tensors of `lazy_state_dict`.
    file
        The file.

    Raises
    ------
    InputError
        If a weight of the model has got no values.
    """
    names: dict[str, list[str]] = {file.original(n): [] for n in file if file.is_factored(n)}
    conversions = getattr(model, "_weight_conversions", None) or []
    for name, renamed in _names_in(model, file, conversions).items():
        names[file.original(name)].append(renamed)
    uses = _uses(model)
    for original, value in file.stream(names):
        assert isinstance(value, Factors)
        for renamed in names[original]:
            _insert(uses.get(renamed, []), value)
    empty = [n for n, s in find_tensors(model).items() if _is_empty(s.weight)]
    if empty:
        raise InputError(
            f"transformers has put no values into {some(empty)}; decompress the folder first "
            "(tersor decompress), and report this"
        )


def _insert(places: list[Site], value: Factors) -> None:
    """Put factors, or the dense weight where these cannot be held, to the uses of a weight."""
    if not places or isinstance(places[0].weight, HeldWeight):
        return
    weight = places[0].weight
    if tuple(weight.shape) != value.shape or not weight.is_floating_point():
        return
    can_hold = not any(holding_problem(site) for site in places)
    empty = _is_empty(weight)
    if not empty and not can_hold:
        return
    if empty and can_hold:
        del weight
        replace_weight(places, value)
        return
    dense = value.recompose().to(weight.device, weight.dtype)
    if empty:
        weight.data = dense
    elif torch.equal(weight, dense):
        del weight, dense
        replace_weight(places, value)


def _is_empty(weight: HeldWeight | Tensor) -> bool:
    """Return whether a matrix is NaN everywhere, so that it waits for its values."""
    if isinstance(weight, HeldWeight) or weight.ndim < 2 or not weight.is_floating_point():
        return False
    if weight.is_meta or not weight.numel() or not weight[(0,) * weight.ndim].isnan():
        return False
    return bool(weight.isnan().all())


def _names_in(model: Any, file: OpenFile, conversions: Sequence[Any]) -> dict[str, str]:
    """Return the names in the model of the factored tensors of a file, by their names in it."""
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    # Only the keys matter; dense weights are all there, also those that are tied.
    known = dict.fromkeys(model.state_dict(), True)
    found = {}
    for name in filter(file.is_factored, file):
        renamed = rename_source_key(name, renamings, [], model.base_model_prefix, known)[0]
        if renamed not in known:
            renamed = rename_source_key(name, [], [], model.base_model_prefix, known)[0]
        found[name] = renamed
    return found


def _uses(model: nn.Module) -> dict[str, list[Site]]:
    """Return the list of all uses of each weight by its names; tied names share one list."""
    lists: dict[int, list[Site]] = {}
    found = {}
    for name, site in find_tensors(model).items():
        if isinstance(site, Site):
            found[name] = lists.setdefault(id(site.weight), [])
            found[name].append(site)
    return found


def fingerprint(model: nn.Module) -> dict[str, int]:
    """Return checksums of all dense tensors of a model by name, and of their factors."""
    return {name: _checksum(value) for name, value in state(model).items()}


def _checksum(value: HeldWeight | Tensor) -> int:
    if not isinstance(value, HeldWeight):
        return checksum(value)
    parts = [(name, checksum(part)) for name, part in value.state_dict().items()]
    return zlib.crc32(repr((parts, value.dtype)).encode())


def make_dense(model: nn.Module) -> None:
    """Replace all factors of a model by the dense weights that they recompose to."""
    for places in {id(places): places for places in _uses(model).values()}.values():
        holder = places[0].weight
        if isinstance(holder, HeldWeight):
            trained = any(part.requires_grad for part in holder.parameters())
            weight = nn.Parameter(holder().detach().clone(), requires_grad=trained)
            for module, name, _ in places:
                detach(module, name, weight)
