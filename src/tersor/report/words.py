"""Names and numbers as the page shows them."""

from __future__ import annotations

import math
import re

from tersor.report.markup import Markup, join
from tersor.storage.header import hundredths
from tersor.storage.summary import TensorSummary
from tersor.text import printable
from tersor.units import format_size

_LONGEST = 120
"""Characters of a name; of a longer one, the beginning and the end are shown."""

_LONGEST_SHAPE = 40

_EXACT = hundredths(math.inf) / 100
"""Signal-to-noise ratio in dB, as files hold it, of what has no noise."""


def name(text: str) -> str:
    """A name, which may be anything, fit to be shown."""
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 40]}…{text[-39:]}"


def size(nbytes: int) -> str:
    """A size that is not broken over two lines."""
    return format_size(nbytes).replace(" ", "\xa0")


def breakable(text: str) -> Markup:
    """A name with places to break the line after its dots and underscores."""
    parts = re.split(r"(?<=[._])", name(text))
    return join(*(c for part in parts for c in (part, Markup("<wbr>"))))


def shape(tensor: TensorSummary) -> str:
    """Lengths of the axes."""
    text = "×".join(map(str, tensor.shape)) or "scalar"
    return text if len(text) <= _LONGEST_SHAPE else f"{len(tensor.shape)} axes"


def decibels(snr: float | None) -> str:
    """A signal-to-noise ratio in words, without its unit."""
    if snr is None:
        return "–"
    if snr >= _EXACT:
        return "exact"
    return f"{snr:.1f}" if math.isfinite(snr) else "−∞"


def percent(share: float) -> str:
    """A share in percent, as short as it can be."""
    if 0 < share < 0.01:
        return "<1\xa0%"
    return f"{100 * share:.0f}\xa0%"
