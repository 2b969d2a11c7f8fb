# SPDX-License-Identifier: Apache-2.0
"""Place buffers in one memory, so that those of the same time do not overlap."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, permutations

ALIGNMENT = 8
_EXHAUSTIVE, _TRIALS = 6, 2000


@dataclass(frozen=True)
class Buffer:
    """A part of the arena.

    Parameters
    ----------
    size
        Bytes.
    first, last
        Steps in which it is written first and read last.
    """

    size: int
    first: int
    last: int


def place(buffers: Sequence[Buffer]) -> tuple[list[int], int]:
    """Return the offset of each buffer, and the bytes of the arena.

    Buffers are placed one after the other, each into the smallest gap that is large enough. Orders
    are tried until the arena is as small as the most bytes that are needed at a time: all orders of
    up to six buffers, else the largest first and random changes of it.

    Parameters
    ----------
    buffers
        The buffers.
    """
    least = _most_at_a_time(buffers)
    best: tuple[list[int], int] = ([], -1)
    for order in _orders(buffers):
        offsets = _in_order(buffers, order)
        size = max((o + aligned(b.size) for o, b in zip(offsets, buffers, strict=True)), default=0)
        if best[1] < 0 or size < best[1]:
            best = offsets, size
        if best[1] == least:
            break
    return best


def aligned(size: int) -> int:
    """Return the next multiple of 8."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _most_at_a_time(buffers: Sequence[Buffer]) -> int:
    steps = {b.first for b in buffers}
    return max((sum(aligned(b.size) for b in buffers if b.first <= s <= b.last) for s in steps),
               default=0)  # fmt: skip


def _orders(buffers: Sequence[Buffer]) -> Iterator[Sequence[int]]:
    if len(buffers) <= _EXHAUSTIVE:
        yield from permutations(range(len(buffers)))
        return
    order = sorted(range(len(buffers)), key=lambda i: -buffers[i].size)
    yield order
    yield range(len(buffers))
    yield from islice(_changed(order), _TRIALS)


def _changed(order: Sequence[int]) -> Iterator[Sequence[int]]:
    source = random.Random(0)
    while True:
        new = list(order)
        for _ in range(source.randint(1, 4)):
            new.insert(source.randrange(len(new)), new.pop(source.randrange(len(new))))
        yield new


def _in_order(buffers: Sequence[Buffer], order: Sequence[int]) -> list[int]:
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for i in order:
        own = buffers[i]
        beside = [j for j in placed if _meet(own, buffers[j])]
        taken = sorted((offsets[j], offsets[j] + aligned(buffers[j].size)) for j in beside)
        offsets[i] = _best_fit(taken, aligned(own.size))
        placed.append(i)
    return offsets


def _meet(a: Buffer, b: Buffer) -> bool:
    return a.first <= b.last and b.first <= a.last


def _best_fit(taken: Sequence[tuple[int, int]], size: int) -> int:
    """Return the start of the smallest gap of this size at least, or the end."""
    end, gaps = 0, []
    for start, stop in taken:
        if start - end >= size:
            gaps.append((start - end, end))
        end = max(end, stop)
    return min(gaps)[1] if gaps else end
