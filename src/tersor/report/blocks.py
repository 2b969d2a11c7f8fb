"""Build the parts that the sections of the page consist of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tersor.report.markup import Markup, tag


def section(title: str, explanation: str, *content: Markup) -> Markup:
    """Return a part of the page under a heading. The explanation may be empty."""
    text = tag("p", explanation, class_="explanation") if explanation else Markup()
    anchor = re.sub(r"\W+", "-", title.lower())
    return tag("section", tag("h2", title), text, *content, id=anchor)


def details(summary: str, content: Markup) -> Markup:
    """Return content that is hidden until the reader opens it."""
    return tag("details", tag("summary", summary), content)


def number(text: str, class_: str = "", value: float | None = None) -> Markup:
    """Return a cell with a number. It is sorted by ``value`` if that is given."""
    return tag("td", text, class_=f"number {class_}".strip(), data_value=value)


def table(
    caption: str,
    columns: Mapping[str, str],
    rows: Iterable[Iterable[Markup]],
    *,
    class_: str | None = None,
) -> Markup:
    """Return a table.

    Parameters
    ----------
    caption
        Caption of the table.
    columns
        CSS class of each column, by its title; empty if there is none.
    rows
        Cells of each row.
    class_
        CSS class of the table; by default none.
    """
    heads = [tag("th", title, scope="col", class_=kind or None) for title, kind in columns.items()]
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *(tag("tr", *row) for row in rows)),
        class_=class_,
    )
