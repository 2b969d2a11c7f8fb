"""Text from outside, such as names in a file, made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text, with characters escaped that would steer what shows it or that cannot be seen.

    Those are control characters (a terminal obeys them), line breaks, what turns the direction of
    writing, and what is not valid Unicode.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """The same of a message of several lines, of which all but the first are indented.

    So no name in it can pass for a message of its own.
    """
    return "\n    ".join(map(printable, text.split("\n")))
