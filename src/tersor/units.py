# SPDX-License-Identifier: Apache-2.0
"""Parse and format sizes in bytes, such as ``54kB``."""

from __future__ import annotations

import re
from decimal import Decimal

from tersor.errors import InputError

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_size(text: str | int) -> int:
    """Return the number of bytes of a size such as ``54kB``, ``1.5 MiB`` or ``54000``.

    Parameters
    ----------
    text
        A number of bytes, or a number and a unit: B, kB (1000 bytes), MB, GB, KiB (1024 bytes), MiB
        or GiB, in upper or lower case.

    Returns
    -------
    int
        Bytes, rounded down.

    Raises
    ------
    InputError
        If the text is not a positive number, alone or with one of these units.
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
    """Return a size as text: in bytes below 10 kB, else in kB or MB (1000 and 1000000 bytes)."""
    if nbytes < 10_000:
        return f"{nbytes} bytes"
    return f"{nbytes / 1e3:.1f} kB" if nbytes < 10_000_000 else f"{nbytes / 1e6:.2f} MB"
