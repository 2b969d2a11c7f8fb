# SPDX-License-Identifier: Apache-2.0
"""Write one self-contained page about a file: it loads nothing from a network."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tersor.compression.curve_file import Curve
from tersor.report import sections, svg, words
from tersor.report.facts import Facts
from tersor.report.tradeoff import tradeoff
from tersor.storage.atomic import replacing
from tersor.version import __version__

_FOLDER = Path(__file__).parent / "templates"


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
    style, script = ((_FOLDER / file).read_text("utf-8") for file in ("page.css", "sort.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            facts=facts,
            style=Markup(style),
            script=Markup(script),
            digest=Markup(digest),
            version=__version__,
            tradeoff=None if curve is None else tradeoff(curve, facts),
            **sections.values(facts),
        )
    )


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


def _environment() -> Environment:
    """Return the templates, with what they use. All text that they are given is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "anchor": lambda title: re.sub(r"\W+", "-", title.lower()),
        "breakable": words.breakable,
        "decibels": words.decibels,
        "name": words.name,
        "shape": words.shape,
    }
    environment.globals |= {
        "bar": svg.bar,
        "histogram": svg.histogram,
        "skyline": svg.skyline,
    }
    return environment
