# SPDX-License-Identifier: Apache-2.0
import time

import pytest
import torch

from tersor.parallel import ordered


def test_results_come_in_order():
    def slow_if_even(n):
        time.sleep(0.002 * (n % 2 == 0))
        return n * n

    assert list(ordered(slow_if_even, range(50))) == [n * n for n in range(50)]


def test_few_items_are_taken_ahead():
    taken = []

    def items():
        for n in range(100):
            taken.append(n)
            yield n

    results = ordered(lambda n: n, items())
    for n in range(100):
        assert next(results) == n
        assert len(taken) <= n + 2 + 2 * torch.get_num_threads()


@pytest.mark.parametrize(
    "sizes, most", [([40] * 9, 1), ([10] * 9, 2), ([40, 1, 1, 1, 40, 1, 1], 4)], ids=str
)
def test_large_items_are_not_held_together(sizes, most):
    """In MB; beside a large one there is room for small ones."""
    begun, held = [], []
    for n in ordered(lambda n: begun.append(n) or n, range(len(sizes)), lambda n: sizes[n] << 20):
        held.append(len(begun) - n)
    assert begun == list(range(len(sizes)))
    assert max(held) <= most


def test_errors_come_through():
    def fail(n):
        raise ValueError(f"item {n}")

    with pytest.raises(ValueError, match="item 0"):
        list(ordered(fail, range(9)))


def test_nothing_gives_nothing():
    assert list(ordered(str, [])) == []
