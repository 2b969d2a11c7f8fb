# SPDX-License-Identifier: Apache-2.0
"""Break the names of tensors between their parts, for narrow columns of a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text


@dataclass(frozen=True)
class Name:
    """One name or several, shown literally and not as rich's markup.

    Lines are broken after dots, underscores and spaces. A part that is longer than a line is broken
    anywhere.

    Parameters
    ----------
    text
        The name.
    """

    text: str

    @property
    def _parts(self) -> list[str]:
        return re.split(r"(?<=[._ ])(?=[^._ ])", self.text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = list(_lines(self._parts, options.max_width))
        yield Text("\n".join(lines), overflow="fold")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(cell_len, self._parts)), cell_len(self.text))


def _lines(parts: list[str], width: int) -> Iterator[str]:
    line = ""
    for part in parts:
        if line and cell_len(line) + cell_len(part.rstrip()) > width:
            yield line.rstrip()
            line = ""
        line += part
    yield line
