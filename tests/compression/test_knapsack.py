# SPDX-License-Identifier: Apache-2.0
import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.compression.knapsack import choose

groups = st.lists(
    st.lists(st.tuples(st.integers(0, 500), st.floats(0, 100)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(groups, st.integers(0, 2000))
def test_no_other_choice_that_fits_has_less_error(options, budget):
    fitting = [
        sum(error for _, error in combination)
        for combination in itertools.product(*options)
        if sum(size for size, _ in combination) <= budget
    ]
    chosen = choose(options, budget)
    if not fitting:
        assert chosen is None
        return
    assert sum(g[i][0] for g, i in zip(options, chosen, strict=True)) <= budget
    error = sum(g[i][1] for g, i in zip(options, chosen, strict=True))
    assert error <= min(fitting) * 1.001 + 1e-6 * max(e for g in options for _, e in g)


def test_many_groups_fill_the_budget():
    options = [[(0, 9.0), (100 + 7 * i % 13, 1.0), (60 + 5 * i % 11, 2.0)] for i in range(200)]
    chosen = choose(options, 16_000)
    assert 15_900 < sum(g[i][0] for g, i in zip(options, chosen, strict=True)) <= 16_000


def test_of_many_groups_only_those_in_doubt_are_searched():
    """The result is no worse than one λ of a byte for all, and fills the budget."""
    generator = random.Random(0)
    options = []
    for _ in range(3000):
        size, error = generator.randint(1000, 9000), generator.uniform(1, 50)
        sizes = [round(size * (1 + 0.1 * i)) for i in range(3)]
        options.append([(s, error * 2.0 ** (-8 * (s - size) / size)) for s in sizes])
    least, most = (sum(f(s for s, _ in g) for g in options) for f in (min, max))
    budget = (least + most) // 2
    chosen = choose(options, budget)
    taken = sum(g[i][0] for g, i in zip(options, chosen, strict=True))
    error = sum(g[i][1] for g, i in zip(options, chosen, strict=True))
    assert 0.999 * budget < taken <= budget
    slope = 1e-5

    def bound(lagrangian):  # of Lagrange: no choice that fits has less error
        return sum(min(e + lagrangian * s for s, e in g) for g in options) - lagrangian * budget

    low, high = slope, 1.0
    for _ in range(200):  # the bound is concave in λ
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if bound(a) < bound(b) else (low, b)
    assert error <= bound(low) * (1 + 2e-4)


def test_many_groups_that_do_not_fit():
    assert choose([[(10, 1.0)]] * 1000, 9999) is None
    assert choose([[(10, 1.0), (20, 0.5)]] * 1000, 10000) == [0] * 1000
