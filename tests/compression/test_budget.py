# SPDX-License-Identifier: Apache-2.0
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.compression.budget import target_bytes
from tersor.errors import BudgetError, InputError
from tersor.units import format_size, parse_size

UNITS = {"B": 1, "kB": 1000, "MB": 10**6, "GB": 10**9, "KiB": 1024, "MiB": 2**20, "GiB": 2**30}


@pytest.mark.parametrize(
    "text, size",
    [
        ("54kB", 54_000),
        ("54 kB", 54_000),
        ("54KB", 54_000),
        (" 1.5MiB ", 1_572_864),
        ("1.001kB", 1001),  # in floating point this would be 1000
        ("54000", 54_000),
        (54_000, 54_000),
        ("0.5B", 0),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@given(
    st.integers(1, 10**9),
    st.decimals(Decimal("0.001"), 10**6, places=3),
    st.sampled_from(list(UNITS)),
    st.sampled_from([str.lower, str.upper, str]),
    st.sampled_from(["", " "]),
)
def test_sizes_of_any_unit(whole, number, unit, case, space):
    assert parse_size(whole) == whole
    assert parse_size(f"{number}{space}{case(unit)}") == int(number * UNITS[unit])


@pytest.mark.parametrize(
    "text",
    ["54 apples", "", "kB", "0", "0kB", "-5kB", "nan", "inf", "1e3", "1,5kB", "5 k B", "٣ apples"],
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match=r"not a size: .* such as 54kB"):
        parse_size(text)


@given(st.text())
def test_any_text_is_a_size_or_refused(text):
    try:
        assert parse_size(text) >= 0
    except InputError as error:
        assert repr(text) in str(error)


def test_sizes_for_people():
    assert format_size(9_999) == "9999 bytes"
    assert format_size(54_321) == "54.3 kB"
    assert format_size(12_345_678) == "12.35 MB"


@pytest.mark.parametrize(
    "budget, size",
    [
        ({"ratio": 20}, 5000),
        ({"ratio": np.float32(20)}, 5000),
        ({"ratio": 3}, 33_333),
        ({"target_size": "54kB"}, 54_000),
        ({"target_size": 54_000}, 54_000),
        ({"bits_per_weight": 1.5}, 4687),
        ({"ratio": 1e300}, 0),
    ],
)
def test_targets(budget, size):
    assert target_bytes(100_000, 25_000, **budget) == size


@pytest.mark.parametrize("name", ["ratio", "bits_per_weight"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "20", None, [20]])
def test_what_is_no_positive_number_is_refused(name, value):
    with pytest.raises(InputError, match=r"must be a positive number, got|give exactly one"):
        target_bytes(100_000, 25_000, **{name: value})


def test_exactly_one_budget_is_needed():
    with pytest.raises(InputError, match="got none"):
        target_bytes(1000, 10)
    with pytest.raises(InputError, match="got ratio and target size"):
        target_bytes(1000, 10, ratio=2, target_size="1kB")


@pytest.mark.parametrize(
    "budget",
    [
        {"ratio": 1},
        {"ratio": 0.5},
        {"ratio": 1e-320},
        {"target_size": 1000},
        {"target_size": "9" * 400},
        {"bits_per_weight": 800},
        {"bits_per_weight": 1e308},
    ],
)
def test_targets_that_are_not_below_the_input_are_refused(budget):
    with pytest.raises(BudgetError, match=r"but the input has only 1000 bytes; ask for less"):
        target_bytes(1000, 10, **budget)
