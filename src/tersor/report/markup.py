"""HTML and SVG elements. What is not an element already is text, and escaped."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is markup already."""


def tag(name: str, /, *content: str, **attributes: object) -> Markup:
    """One element.

    Parameters
    ----------
    name
        Name of the element.
    content
        Elements, or text that is escaped.
    attributes
        Their values are escaped. A trailing underscore is dropped, others become hyphens:
        ``class_``, ``aria_label``. Those that are None are left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(*content)}</{name}>")


def join(*content: str) -> Markup:
    """Elements and texts one after the other."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in content))


def void(name: str, /, **attributes: object) -> Markup:
    """An element that has no content and no end tag, such as ``meta``."""
    return Markup(tag(name, **attributes).removesuffix(f"</{name}>"))
