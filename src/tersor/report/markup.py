# SPDX-License-Identifier: Apache-2.0
"""Build SVG elements. Plain strings are text, and are escaped."""

from __future__ import annotations

from markupsafe import Markup, escape


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
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{Markup('').join(content)}</{name}>")
