# SPDX-License-Identifier: Apache-2.0
"""Provide operators on factors: the reference implementation of each defines the correct result."""

from tersor.kernels.arguments import fits
from tersor.kernels.cpu import instructions, is_plain, known, native, native_rows, places
from tersor.kernels.product import linear, missing_on, rows
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
