import time

import pytest
import torch

from tersor.storage.parallel import ordered


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


@pytest.mark.parametrize("size, most", [(40_000_000, 1), (10_000_000, 3)])
def test_large_items_are_not_held_together(size, most):
    begun, finished = [], []
    for n in ordered(lambda n: begun.append(n) or n, range(9), lambda n: size):
        assert len(begun) - len(finished) <= most
        finished.append(n)
    assert finished == list(range(9))


def test_errors_come_through():
    def fail(n):
        raise ValueError(f"item {n}")

    with pytest.raises(ValueError, match="item 0"):
        list(ordered(fail, range(9)))


def test_nothing_gives_nothing():
    assert list(ordered(str, [])) == []
