import itertools

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
