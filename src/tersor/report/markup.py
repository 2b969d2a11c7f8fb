"""Build HTML and SVG elements. Plain strings are text, and are escaped."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is markup, and is not escaped."""


def tag(name: str, /, *content: str, **attributes: object) -> Markup:
    """Return an element.

    Parameters
    ----------
    name
        Name of the element.
    content
        Elements, or text, which is escaped.
    attributes
        Values of the attributes, which are escaped; those that are None are left out. In a name, a
        trailing underscore is dropped and the others become hyphens: ``class_``, ``aria_label``.

    Returns
    -------
    Markup
        The element with its content.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(*content)}</{name}>")


def join(*content: str) -> Markup:
    """Return elements and texts one after the other; the texts are escaped."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in content))


def void(name: str, /, **attributes: object) -> Markup:
    """Return an element that has no content and no end tag, such as ``meta``."""
    return Markup(tag(name, **attributes).removesuffix(f"</{name}>"))
