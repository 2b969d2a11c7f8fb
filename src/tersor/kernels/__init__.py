"""Operators on factors: one schema each, the reference implementation defines what is correct."""

from tersor.kernels.product import (
    instructions,
    is_plain,
    known,
    linear,
    missing_on,
    native,
    native_rows,
    rows,
)
from tersor.kernels.reference import power_of_two, recompose

__all__ = [
    "instructions",
    "is_plain",
    "known",
    "linear",
    "missing_on",
    "native",
    "native_rows",
    "power_of_two",
    "recompose",
    "rows",
]
