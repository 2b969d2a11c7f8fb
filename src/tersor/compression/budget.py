# SPDX-License-Identifier: Apache-2.0
"""Convert the size that the user asks for to bytes."""

from __future__ import annotations

from numbers import Real

from tersor.errors import BudgetError, InputError
from tersor.units import format_size, parse_size

_MOST = 2**63
"""Larger sizes are treated as this one."""


def target_bytes(
    source_bytes: int,
    weights: int,
    *,
    ratio: float | None = None,
    target_size: str | int | None = None,
    bits_per_weight: float | None = None,
) -> int:
    """Return the largest number of bytes that the file may have.

    Parameters
    ----------
    source_bytes
        Bytes of the source, to which the ratio refers.
    weights
        Number of weights, to which bits per weight refer.
    ratio
        Bytes of the source divided by bytes of the file.
    target_size
        Bytes of the file: a number, or a text such as ``"54kB"`` (1 kB is 1000 bytes).
    bits_per_weight
        Bits of the file divided by the number of weights.

    Returns
    -------
    int
        Bytes of the file, at most.

    Raises
    ------
    InputError
        If not exactly one of the three is given, or it is not a positive number.
    BudgetError
        If the result is not smaller than the source.
    """
    given = {"ratio": ratio, "target size": target_size, "bits per weight": bits_per_weight}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise InputError(
            "give exactly one of ratio, target size, bits per weight, largest drop (--max-drop) "
            f"and lossless (--lossless); got {' and '.join(chosen) or 'none'}"
        )
    if target_size is not None:
        target = min(parse_size(target_size), _MOST)
    else:
        number = ratio if ratio is not None else bits_per_weight
        if not isinstance(number, Real) or not 0 < number < float("inf"):
            raise InputError(f"{chosen[0]} must be a positive number, got {number!r}")
        wanted = source_bytes / number if ratio is not None else number * weights / 8
        target = int(min(wanted, _MOST))
    if target >= source_bytes:
        raise BudgetError(
            f"the {chosen[0]} asks for {format_size(target)}, but the input has only "
            f"{format_size(source_bytes)}; ask for less"
        )
    return target
