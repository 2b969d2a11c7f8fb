"""Write one self-contained page about a file: it loads nothing from a network."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from tersor.compression.curve_file import Curve
from tersor.report import sections
from tersor.report.facts import Facts
from tersor.report.markup import Markup, tag, void
from tersor.report.tradeoff import tradeoff
from tersor.report.words import name
from tersor.storage.atomic import replacing

_HERE = Path(__file__).parent


def page(facts: Facts, curve: Curve | None = None) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    facts
        Figures of the file, see `tersor.report.facts.gather`.
    curve
        Curve on which the size of the file is marked; by default none.

    Returns
    -------
    str
        The document.
    """
    title = f"{name(facts.name)}: report"
    document = tag("html", _head(title), tag("body", *_body(facts, curve)), lang="en")
    return f"<!doctype html>\n{document}\n"


def write(path: str | os.PathLike[str], facts: Facts, curve: Curve | None = None) -> int:
    """Write the page atomically, and return its size in bytes.

    Parameters
    ----------
    path
        File to write.
    facts, curve
        See `page`.

    Raises
    ------
    InputError, OSError
        If the file cannot be written.
    """
    with replacing(path) as temporary:
        return temporary.write_bytes(page(facts, curve).encode())


def _head(title: str) -> Markup:
    style, script = (Markup((_HERE / file).read_text("utf-8")) for file in ("page.css", "sort.js"))
    # With this policy the browser loads nothing, and runs no other script.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return tag(
        "head",
        void("meta", charset="utf-8"),
        void("meta", http_equiv="Content-Security-Policy", content=policy),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
        tag("script", script, type="module"),
    )


def _body(facts: Facts, curve: Curve | None) -> list[Markup]:
    parts = [sections.heading(facts)]
    if curve is not None:
        parts.append(tradeoff(curve, facts))
    parts.append(sections.division(facts))
    if facts.layers:
        parts += [sections.rates(facts), sections.layers(facts), sections.cards(facts)]
    parts += [sections.unfactored(facts), sections.notes(facts)]
    return [tag("main", *(part for part in parts if part))]
