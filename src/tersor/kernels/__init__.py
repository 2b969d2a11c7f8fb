"""Provide operators on factors: the reference implementation of each defines the correct result."""

from tersor.kernels.product import (
    fits,
    instructions,
    is_plain,
    known,
    linear,
    missing_on,
    native,
    native_rows,
    places,
    rows,
)
from tersor.kernels.reference import power_of_two, recompose

__all__ = [
    "fits",
    "instructions",
    "is_plain",
    "known",
    "linear",
    "missing_on",
    "native",
    "native_rows",
    "places",
    "power_of_two",
    "recompose",
    "rows",
]
