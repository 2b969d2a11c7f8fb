# SPDX-License-Identifier: Apache-2.0
"""Say where in the arena each tensor of a network lies, and the scratch memory of each call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tersor.export.c99 import arena
from tersor.export.c99.arena import Buffer, aligned
from tersor.export.c99.plan import IN_PLACE, Convolution, Network, Operation, Value
from tersor.export.c99.weights import Coded
from tersor.tiling import Tiling, slices

SPACE = 5248
"""Bytes of the decoder's own state: ``TERSOR_SCRATCH`` of ``tersor_runtime.h``."""

FLOAT = 4


@dataclass(frozen=True)
class Memory:
    """The arena of a network.

    Parameters
    ----------
    offsets
        Byte at which each tensor begins.
    scratch
        Byte at which the scratch memory of each call begins, and its bytes.
    nbytes
        Bytes of the arena.
    """

    offsets: dict[Value, int]
    scratch: dict[Operation, tuple[int, int]]
    nbytes: int


def scratch_bytes(coded: Coded) -> int:
    """Return the scratch memory that a layer with coded weights needs."""
    tiling, rows = Tiling(coded.shape, coded.encoded.tile), coded.shape[0]
    last = slices(rows, coded.encoded.coding.slice_rows)[-1]
    integers = coded.encoded.rank * (coded.encoded.tile + rows * tiling.tiles_per_row)
    scales = max(last + tiling.tiles_per_row, coded.encoded.tile + 1)
    return SPACE + 8 * scales + aligned(2 * integers) + 2 * aligned(FLOAT * tiling.row_length)


def plan(network: Network, scratch: Mapping[Convolution, int]) -> Memory:
    """Return the arena.

    Parameters
    ----------
    network
        The network. Its inputs and outputs are in memory of the caller.
    scratch
        Bytes of the scratch memory of each call that needs some.
    """
    place = _shared(network)
    outside = {*network.inputs, *network.outputs}
    times: dict[Value, tuple[int, int]] = {}
    for step, operation in enumerate(network.operations):
        for value in [operation.output, *operation.inputs]:
            own = place[value.root]
            times[own] = times.get(own, (step, step))[0], step
    owners: list[Value | Operation] = [value for value in times if value not in outside]
    buffers = [Buffer(FLOAT * v.numel, *times[v]) for v in owners if isinstance(v, Value)]
    for step, operation in enumerate(network.operations):
        if isinstance(operation, Convolution) and (size := scratch.get(operation)):
            owners.append(operation)
            buffers.append(Buffer(size, step, step))
    offsets, nbytes = arena.place(buffers)
    found = dict(zip(owners, offsets, strict=True))
    return Memory(
        {v: found[place[v.root]] for v in _values(network) if place[v.root] in found},
        {o: (found[o], size) for o, size in scratch.items() if size},
        nbytes,
    )


def _values(network: Network) -> list[Value]:
    return [v for o in network.operations for v in (*o.inputs, o.output)]


def _shared(network: Network) -> dict[Value, Value]:
    """Return, for each tensor, the one whose place it takes: its own, or that of a dead input."""
    last: dict[Value, int] = {}
    for step, operation in enumerate(network.operations):
        for value in operation.inputs:
            last[value.root] = step
    place = {value.root: value.root for value in _values(network)}
    for step, operation in enumerate(network.operations):
        if isinstance(operation, IN_PLACE):
            for value in operation.inputs:
                if last[value.root] == step:
                    place[operation.output] = place[value.root]
                    break
    return place


def multiplications(network: Network) -> int:
    """Return the products that one run sums up, where nothing is padded."""
    return sum(o.multiplications for o in network.operations if isinstance(o, Convolution))
