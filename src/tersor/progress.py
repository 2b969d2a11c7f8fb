# SPDX-License-Identifier: Apache-2.0
"""Show the progress of long work as a bar on a terminal, and show nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tersor.text import printable

Progress = Callable[[str, float], None]
"""A function that takes a description of the current work and the finished share, 0 to 1."""

_WIDE = 72
"""Columns of a terminal on which the bar itself and the time so far have room, too."""


def silent(message: str, done: float) -> None:
    """Do nothing: the `Progress` for work whose progress is not shown."""


@contextmanager
def shown(title: str) -> Iterator[Progress]:
    """Yield a `Progress` that draws a bar with the time left on standard error.

    Where standard error is not a terminal, yield `silent`.
    """
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar
    from rich.table import Column

    console = Console(stderr=True)
    # On a narrow terminal only this column is shortened.
    what = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.description}", table_column=what),
    )
    if console.width >= _WIDE:
        titled = (TextColumn("{task.fields[title]}"), BarColumn(bar_width=20))
        columns = (*titled, columns[0], TimeElapsedColumn(), *columns[1:])
    with Bar(*columns, console=console, transient=True, expand=True) as bar:
        task = bar.add_task("", total=1.0, title=title)
        yield lambda message, done: bar.update(
            task, completed=done, description=escape(printable(message))
        )
