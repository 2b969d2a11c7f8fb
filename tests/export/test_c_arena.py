# SPDX-License-Identifier: Apache-2.0
"""The arena of exported C programs."""

import itertools
import random

import pytest

from tersor.export.c99.arena import Buffer, aligned, place


def meet(a, b):
    return a.first <= b.last and b.first <= a.last


def valid(buffers, offsets, sizes):
    return all(
        not meet(a, b) or x + m <= y or y + n <= x
        for (a, x, m), (b, y, n) in itertools.combinations(
            zip(buffers, offsets, sizes, strict=True), 2
        )
    )


def brute_force(buffers):
    """The smallest arena: every offset that is a multiple of 8 is tried for every buffer."""
    sizes = [aligned(b.size) for b in buffers]
    for total in range(max(sizes), sum(sizes) + 1, 8):
        choices = [range(0, total - size + 1, 8) for size in sizes]
        if any(valid(buffers, offsets, sizes) for offsets in itertools.product(*choices)):
            return total
    raise AssertionError("one after the other always fits")


@pytest.mark.parametrize("seed", range(60))
def test_small_graphs_take_no_more_than_any_placement(seed):
    draw = random.Random(seed)
    buffers = []
    for _ in range(draw.randint(1, 5)):
        first = draw.randint(0, 4)
        buffers.append(Buffer(draw.randint(1, 32), first, draw.randint(first, 5)))
    offsets, size = place(buffers)
    assert valid(buffers, offsets, [b.size for b in buffers])
    assert size == brute_force(buffers)


@pytest.mark.parametrize("seed", range(20))
def test_large_graphs_do_not_overlap(seed):
    draw = random.Random(seed)
    starts = [draw.randint(0, 30) for _ in range(40)]
    buffers = [Buffer(draw.randint(1, 9999), s, s + draw.randint(0, 4)) for s in starts]
    offsets, size = place(buffers)
    assert valid(buffers, offsets, [b.size for b in buffers])
    assert all(o % 8 == 0 and o + b.size <= size for o, b in zip(offsets, buffers, strict=True))
    least = max(sum(b.size for b in buffers if b.first <= t <= b.last) for t in range(36))
    assert size < 1.25 * least


def test_nothing_takes_nothing():
    assert place([]) == ([], 0)
