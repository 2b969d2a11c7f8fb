# SPDX-License-Identifier: Apache-2.0
"""Format names and numbers for the page."""

from __future__ import annotations

import math
import re

from markupsafe import Markup, escape

from tersor.storage.header import hundredths
from tersor.storage.summary import TensorSummary
from tersor.text import printable
from tersor.units import format_size

_LONGEST = 120
"""Largest number of characters of a name. Longer ones are shortened in the middle."""

_LONGEST_SHAPE = 40

_EXACT = hundredths(math.inf) / 100
"""Signal-to-noise ratio in dB that files hold for tensors without noise."""


def name(text: str) -> str:
    """Return any name as text that can be shown: printable, and not too long."""
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 40]}…{text[-39:]}"


def size(nbytes: int) -> str:
    """Return a size as text that is not broken over two lines."""
    return format_size(nbytes).replace(" ", "\xa0")


def breakable(text: str) -> Markup:
    """Return a name in which lines can be broken after dots and underscores."""
    parts = re.split(r"(?<=[._])", name(text))
    return Markup("").join(escape(part) + Markup("<wbr>") for part in parts)


def shape(tensor: TensorSummary) -> str:
    """Return the lengths of a tensor's axes as text, or their number if there are many."""
    text = "×".join(map(str, tensor.shape)) or "scalar"
    return text if len(text) <= _LONGEST_SHAPE else f"{len(tensor.shape)} axes"


def decibels(snr: float | None) -> str:
    """Return a signal-to-noise ratio as text, without its unit."""
    if snr is None:
        return "–"
    if snr >= _EXACT:
        return "exact"
    return f"{snr:.1f}" if math.isfinite(snr) else "−∞"


def percent(share: float) -> str:
    """Return a share as a text in percent without decimals."""
    if 0 < share < 0.01:
        return "<1\xa0%"
    return f"{100 * share:.0f}\xa0%"
