"""Operators on factors: one schema each, the reference implementation defines what is correct."""

from tersor.kernels.reference import power_of_two, recompose

__all__ = ["power_of_two", "recompose"]
