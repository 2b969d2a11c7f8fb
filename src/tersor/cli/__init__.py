"""The command line: parse, call, print. Each command imports what it needs when it is called."""

import io
import sys

from tersor.cli.app import app

from tersor.cli import compress, finetune, curve, files, about  # isort: skip  (the order of commands in the help)

__all__ = ["about", "app", "compress", "curve", "files", "finetune", "main"]


def main() -> None:
    """Entry point of the ``tersor`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may not be printable where this runs
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="tersor")
