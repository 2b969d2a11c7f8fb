"""Operators on factors: one schema each, the reference implementation defines what is correct."""

from tersor.kernels.product import (
    addresses,
    instructions,
    is_plain,
    linear,
    missing_on,
    native,
    native_rows,
    rows,
)
from tersor.kernels.reference import power_of_two, recompose

__all__ = [
    "addresses",
    "instructions",
    "is_plain",
    "linear",
    "missing_on",
    "native",
    "native_rows",
    "power_of_two",
    "recompose",
    "rows",
]
