# SPDX-License-Identifier: Apache-2.0
"""Fill the templates of pages."""

from __future__ import annotations

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.lib.places import ROOT

_TEMPLATES = Environment(
    loader=FileSystemLoader(ROOT / "benchmarks" / "pages" / "templates"),
    autoescape=False,  # these are Markdown, of the project's own results
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["fmt"] = format


def fill(template: str, **values: object) -> str:
    """Return a page of Markdown.

    Parameters
    ----------
    template
        Name of a file in ``benchmarks/pages/templates``.
    values
        What the template uses, by name. Numbers are written as ``{{ number | fmt(",") }}``.
    """
    return _TEMPLATES.get_template(template).render(values)
