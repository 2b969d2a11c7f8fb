"""Give the tensors of a tersor file to transformers, and then their factors to its model."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tersor.factors import Factors
from tersor.nn import HeldWeight, state
from tersor.nn.checks import holding_problem
from tersor.nn.convert import replace_weight
from tersor.nn.fill import checksum
from tersor.nn.owner import detach
from tersor.nn.sites import Site, find_tensors
from tersor.storage import dtypes
from tersor.storage.opened import OpenFile


class LazyTensor:
    """A dense tensor of a file that is decoded when it is indexed, like a slice of safetensors."""

    def __init__(self, file: OpenFile, name: str, dtype: torch.dtype) -> None:
        self._file, self._name, self._dtype = file, name, dtype

    def get_dtype(self) -> str:
        """Return the name of the data type in safetensors, such as ``"F32"``."""
        return dtypes.NAMES[self._dtype]

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self._file.shapes[self._name])

    def __getitem__(self, index: Any) -> Tensor:
        return self._file.tensor(self._name)[index]


def lazy_state_dict(file: OpenFile) -> dict[str, Any]:
    """Return the dense tensors of a file by name, each decoded when it is needed."""
    return {field.name: LazyTensor(file, field.name, field.dtype) for field in file.layout.fields}


@torch.no_grad()
def insert_factors(model: Any, file: OpenFile) -> None:
    """Replace the dense weights of a model by the factors that they were decoded from.

    Weights that transformers has changed while it loaded them, as where it stacks the matrices of
    experts, stay dense.

    Parameters
    ----------
    model
        Model of transformers, which has all dense tensors of the file that it needs.
    file
        The file.
    """
    names: dict[str, list[str]] = {file.original(n): [] for n in file if file.is_factored(n)}
    for name, renamed in _names_in(model, file).items():
        names[file.original(name)].append(renamed)
    uses = _uses(model)
    for original, value in file.stream(names):
        assert isinstance(value, Factors)
        for renamed in names[original]:
            places = uses.get(renamed)
            if places and _fits(places, value):
                replace_weight(places, value)


def _names_in(model: Any, file: OpenFile) -> dict[str, str]:
    """Return the names in the model of the factored tensors of a file that transformers renames."""
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    conversions = getattr(model, "_weight_conversions", None) or []
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


def _fits(places: Iterable[Site], value: Factors) -> bool:
    """Return whether a dense weight has exactly the values of factors, and can be replaced."""
    places = list(places)
    weight = places[0].weight
    if isinstance(weight, HeldWeight) or any(holding_problem(site) for site in places):
        return False
    if tuple(weight.shape) != value.shape or not weight.is_floating_point():
        return False
    return torch.equal(weight, value.recompose().to(weight.device, weight.dtype))


def fingerprint(model: nn.Module) -> dict[str, int]:
    """Return checksums of all dense tensors of a model by name, and of their factors."""
    return {name: _checksum(value) for name, value in state(model).items()}


def _checksum(value: HeldWeight | Tensor) -> int:
    if not isinstance(value, HeldWeight):
        return checksum(value)
    factors = value.to_factors()
    sums = repr((checksum(factors.codebook), checksum(factors.latent), factors.scale, value.dtype))
    return zlib.crc32(sums.encode())


def make_dense(model: nn.Module) -> None:
    """Replace all factors of a model by the dense weights that they recompose to."""
    for places in {id(places): places for places in _uses(model).values()}.values():
        holder = places[0].weight
        if isinstance(holder, HeldWeight):
            trained = any(part.requires_grad for part in holder.parameters())
            weight = nn.Parameter(holder().detach().clone(), requires_grad=trained)
            for module, name, _ in places:
                detach(module, name, weight)
