"""Operators on factors: one schema each, the reference implementation defines what is correct."""

from tersor.kernels.product import instructions, is_plain, known, linear, native, rows
from tersor.kernels.reference import power_of_two, recompose

__all__ = [
    "instructions",
    "is_plain",
    "known",
    "linear",
    "native",
    "power_of_two",
    "recompose",
    "rows",
]
