"""What the user asks for -> bytes."""

from __future__ import annotations

import re
from decimal import Decimal
from numbers import Real

from tersor.errors import BudgetError, InputError

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

_MOST = 2**63
"""More than this is not told apart."""


def parse_size(text: str | int) -> int:
    """Bytes of a size such as ``54kB`` (1 kB is 1000 bytes), ``1.5 MiB`` or ``54000``.

    Raises
    ------
    InputError
        If it is not a positive number with a known unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    units = {unit.lower(): factor for unit, factor in _UNITS.items()} | {"": 1}
    if not match or match[2].lower() not in units or Decimal(match[1]) <= 0:
        raise InputError(
            f"not a size: {str(text)!r}; give a number of bytes, or a number with one "
            f"of {', '.join(_UNITS)}, such as 54kB"
        )
    return int(Decimal(match[1]) * units[match[2].lower()])


def format_size(nbytes: int) -> str:
    """A size for people: bytes below 10 kB, else kB or MB (1000 and 1000000 bytes)."""
    if nbytes < 10_000:
        return f"{nbytes} bytes"
    return f"{nbytes / 1e3:.1f} kB" if nbytes < 10_000_000 else f"{nbytes / 1e6:.2f} MB"


def target_bytes(
    source_bytes: int,
    weights: int,
    *,
    ratio: float | None = None,
    target_size: str | int | None = None,
    bits_per_weight: float | None = None,
) -> int:
    """Bytes that the file may have, from the one of the three that is given.

    Parameters
    ----------
    source_bytes
        Size of what is compressed; the ratio refers to it.
    weights
        Number of weights; bits per weight refers to it.

    Raises
    ------
    InputError
        If not exactly one is given, or it is not a positive number.
    BudgetError
        If the target is not smaller than the source.
    """
    given = {"ratio": ratio, "target size": target_size, "bits per weight": bits_per_weight}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise InputError(
            f"give exactly one of ratio, target size and bits per weight; got "
            f"{' and '.join(chosen) or 'none'}"
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
