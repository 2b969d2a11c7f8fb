# SPDX-License-Identifier: Apache-2.0
"""Factor the weights of a checkpoint at some step size, in several threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from tersor import _native
from tersor.calibration.calibrate import Calibration
from tersor.calibration.moments import energy
from tersor.coding import records
from tersor.coding.records import EncodedFactors
from tersor.compression.fill import Version
from tersor.compression.resume import CHOICES, VERSIONS, recalled
from tersor.compression.sizes import SizeModel, SizeOfBinary
from tersor.errors import InputError
from tersor.factorization import tiles
from tersor.factorization.weights import factorize_binary, factorize_weight
from tersor.factors import Factors, decibels
from tersor.progress import Progress
from tersor.storage.checkpoint import Source
from tersor.storage.journal import Journal
from tersor.tiling import as_float32

Item = TypeVar("Item")
Result = TypeVar("Result")

_EXPECTED_PHASES = 3
"""One phase that chooses tiles, and two passes over the weights."""

_LARGE = 1 << 22
"""Weights with more elements are factored one at a time, by all threads."""


@dataclass(frozen=True)
class Weight:
    """Facts about a tensor that will be factored, without its values.

    Parameters
    ----------
    name
        Name in the source.
    shape, dtype
        Shape and data type of the tensor.
    variance
        Mean square of its elements.
    scale
        Factor of the weight's step size. Its squared errors are divided by the square of it, so
        that at a common step size a byte reduces the error of any weight by about as much.
    lookup
        Whether the weight becomes a binary sum, for look-up kernels.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    variance: float
    scale: float = 1.0
    lookup: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Chosen:
    """Tile size of a weight, and the squared error if it is replaced by zeros."""

    choice: tiles.Choice
    energy: float


class Attempts:
    """Chooses tile sizes, and factors weights with them.

    Parameters
    ----------
    source
        Source of the tensors, which are loaded one at a time, several times.
    calibration
        Second moments of the inputs of some weights; None if there are none.
    progress
        Called with a message and the share of the work that is done.
    journal
        Store of results. Those that it already contains are not computed again.
    """

    def __init__(
        self,
        source: Source,
        calibration: Calibration | None,
        progress: Progress,
        journal: Journal | None = None,
    ) -> None:
        self._source, self._calibration, self._progress = source, calibration, progress
        self._journal = journal
        self._chosen: dict[str, _Chosen] = {}
        self._binary: dict[tuple[str, str, int], Version[EncodedFactors]] = {}
        self._phases = 0

    def prepare(self, weights: Sequence[Weight], step_size: float) -> dict[str, SizeModel]:
        """Choose tile sizes that suit a step size, and return models of the bytes, by name."""
        models: dict[str, SizeModel] = {}
        for weight, chosen in self._each(
            partial(self._choose, step_size), weights, "choosing tiles"
        ):
            self._chosen[weight.name] = chosen
            if weight.lookup:
                models[weight.name] = SizeOfBinary(weight.shape, weight.variance / weight.scale**2)
                continue
            models[weight.name] = SizeModel(
                chosen.choice.spectrum * step_size**2, chosen.choice.tiles
            )
            if chosen.choice.nbytes is not None:
                models[weight.name].learn(step_size, chosen.choice.nbytes, provisional=True)
        return models

    def solve(
        self, weights: Sequence[Weight], step_size: float, what: str
    ) -> Iterator[tuple[Weight, Version[EncodedFactors]]]:
        """Yield weights with their versions at a step size; ``what`` names the phase."""
        return self._each(partial(self._recalled_version, step_size), weights, what)

    def nothing(self, weight: Weight) -> Version[EncodedFactors]:
        """Return the version of rank 0, which represents zeros."""
        zeros = records.zero(weight.shape, weight.dtype, 0)
        return Version(0, self._chosen[weight.name].energy / weight.scale**2, zeros)

    def _choose(self, step_size: float, weight: Weight) -> _Chosen:
        values, moments = as_float32(self._source.load(weight.name)), self._moments(weight)
        whole = energy(self._oriented(weight, values), moments)
        if weight.lookup:
            spectrum = np.array([weight.variance / (step_size * weight.scale) ** 2])
            return _Chosen(tiles.Choice(1, spectrum, weight.numel), whole)
        key, stack = ("tiles", weight.name, step_size), tiles.is_stack(weight.name, weight.shape)
        given = values, step_size * weight.scale
        make = partial(tiles.choose, *given, stack=stack)
        holds = partial(tiles.is_candidate, *given, stack=stack)
        return _Chosen(recalled(self._journal, CHOICES, key, make, holds), whole)

    def _tile(self, step_size: float, weight: Weight) -> int:
        if weight.lookup:
            variance = weight.variance / (step_size * weight.scale) ** 2
            return tiles.tile_of_binary(weight.shape, variance)
        return self._chosen[weight.name].choice.tile

    def _recalled_version(self, step_size: float, weight: Weight) -> Version[EncodedFactors]:
        tile, make = self._tile(step_size, weight), partial(self._version, step_size, weight)
        recall = partial(recalled, self._journal, VERSIONS, make=make)
        holds = partial(self._is_version, weight, tile)
        if not weight.lookup:
            return recall(("factors", weight.name, tile, step_size), holds=holds)
        key = ("signs", weight.name, tile)  # the same at many step sizes
        if key not in self._binary:
            self._binary[key] = recall(key, holds=holds)
        return self._binary[key]

    def _is_version(self, weight: Weight, tile: int, version: Version[EncodedFactors]) -> bool:
        """Return whether a recalled version has this tile size and its factors reproduce it."""
        factors = records.decode(version.content, weight.shape, weight.dtype)
        values = self._source.load(weight.name)
        return factors.tiling.size == tile and self._measured(weight, values, factors) == version

    def _version(self, step_size: float, weight: Weight) -> Version[EncodedFactors]:
        values, moments = self._source.load(weight.name), self._moments(weight)
        tile, turned = self._tile(step_size, weight), self._inputs_first(weight)
        if weight.lookup:
            factors = factorize_binary(values, tile, moments=None if turned else moments)
        else:
            step_size *= weight.scale
            factors = factorize_weight(
                values, tile, step_size, moments=moments, inputs_first=turned
            )
        return self._measured(weight, values, factors)

    def _measured(
        self, weight: Weight, values: Tensor, factors: Factors
    ) -> Version[EncodedFactors]:
        moments = self._moments(weight)
        error = as_float32(values) - as_float32(factors.recompose())
        squares, signal = energy(error, None), energy(as_float32(values), None)
        encoded = records.encode(factors, decibels(signal, squares))
        if moments is not None:
            squares = energy(self._oriented(weight, error), moments)
        return Version(encoded.coded_bytes, squares / weight.scale**2, encoded)

    def _moments(self, weight: Weight) -> Tensor | None:
        """Return the second moments of a weight's inputs, or None if they are unknown."""
        moments = self._calibration.metric(weight.name) if self._calibration else None
        turned = self._inputs_first(weight)
        inputs = weight.shape[0] if turned else math.prod(weight.shape[1:])
        if moments is not None and moments.shape[-1] != inputs:
            raise InputError(
                f"the calibration does not fit: {weight.name!r} has rows of {inputs} weights, its "
                f"moments are of {moments.shape[-1]} inputs; calibrate this model"
            )
        return moments

    def _inputs_first(self, weight: Weight) -> bool:
        return self._calibration is not None and weight.name in self._calibration.inputs_first

    def _oriented(self, weight: Weight, values: Tensor) -> Tensor:
        """Return values, or errors, of a weight with the inputs last, as `energy` takes them."""
        return (
            values if self._calibration is None else self._calibration.oriented(weight.name, values)
        )

    def _each(
        self, work: Callable[[Weight], Result], weights: Sequence[Weight], what: str
    ) -> Iterator[tuple[Weight, Result]]:
        """Yield weights with their results, in the order of the weights, the largest first.

        Large weights are processed one at a time to save memory, and each keeps all threads busy.
        """
        total, done, phase = sum(w.numel for w in weights), 0, self._phases
        self._phases += 1
        for weight, result in in_threads(work, weights, lambda w: w.numel > _LARGE):
            done += weight.numel
            share = (phase + done / total) / max(_EXPECTED_PHASES, phase + 1)
            self._progress(f"{what}: {weight.name}", share)
            yield weight, result


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], alone: Callable[[Item], bool]
) -> Iterator[tuple[Item, Result]]:
    """Yield items with their results: first those to process alone, then the others, in order.

    An item for which ``alone`` returns true uses all threads of torch. The others use one each.
    """
    items, threads = list(items), torch.get_num_threads()
    shared = [item for item in items if not alone(item)]
    for item in items:
        if alone(item) or threads == 1:
            result = work(item)
            _native.release_memory()  # the allocator would keep the memory of large items
            yield item, result
    if threads == 1:
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(work, item) for item in shared]
        try:
            for item, future in zip(shared, futures, strict=True):
                yield item, future.result()
        finally:  # a caller that stops early does not wait for the remaining items
            for future in futures:
                future.cancel()
            torch.set_num_threads(threads)
