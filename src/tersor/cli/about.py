# SPDX-License-Identifier: Apache-2.0
"""Define the commands about tersor itself: ``info``, ``demo``, and ``--version``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.app import app, reporting_errors
from tersor.cli.output import AsJson, console, emit, restart, say


@app.command(epilog="Example: `tersor info`")
def info(as_json: AsJson = False) -> None:
    """Show versions, which kernels are there, and the number of threads."""
    from tersor.report.info import environment

    found = environment()
    for name, value in found.items():
        say(f"{name:<14}{value}")
    emit(found)


@app.command(epilog="Example: `tersor demo --output demo`")
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the files, a picture and reports.")
    ] = Path("demo"),
) -> None:
    """Compress a network that is trained on digits, and a pretrained sentence encoder; compare."""
    with reporting_errors():
        from tersor.cli.demo.run import run

        run(output, console)


def version(show: bool) -> None:
    """Print the version and stop."""
    if show:
        from tersor.version import __version__

        console.print(f"tersor {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Print as each command says, whatever the last one did."""
    restart()
