# SPDX-License-Identifier: Apache-2.0
"""Make text from outside, such as names in a file, safe and short enough to show."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Return the text with all characters escaped that are not printable.

    These are control characters, which a terminal obeys, line breaks, characters that reverse the
    direction of writing, and characters that are not valid Unicode.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """Return a message of several lines with each line `printable` and all but the first indented.

    The indentation shows that a line belongs to the message: a name that contains a line break
    cannot look like a second message.
    """
    return "\n    ".join(map(printable, text.split("\n")))


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first ``most`` names as text, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
