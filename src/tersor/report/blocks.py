"""What the sections of the page are built from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tersor.report.markup import Markup, tag


def section(title: str, explanation: str, *content: Markup) -> Markup:
    """A part of the page under a heading; the explanation may be empty."""
    text = tag("p", explanation, class_="explanation") if explanation else Markup()
    anchor = re.sub(r"\W+", "-", title.lower())
    return tag("section", tag("h2", title), text, *content, id=anchor)


def details(summary: str, content: Markup) -> Markup:
    """Content that is folded away."""
    return tag("details", tag("summary", summary), content)


def number(text: str, class_: str = "", value: float | None = None) -> Markup:
    """A cell with a number, which sorts by another value if one is given."""
    return tag("td", text, class_=f"number {class_}".strip(), data_value=value)


def table(
    caption: str,
    columns: Mapping[str, str],
    rows: Iterable[Iterable[Markup]],
    *,
    class_: str | None = None,
) -> Markup:
    """Rows of cells under columns, which are given as titles with their classes."""
    heads = [tag("th", title, scope="col", class_=kind or None) for title, kind in columns.items()]
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *(tag("tr", *row) for row in rows)),
        class_=class_,
    )
