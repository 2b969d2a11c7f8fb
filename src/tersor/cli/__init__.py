"""The command line: parse, call, print. Each command imports what it needs when it is called."""

import io
import os
import sys

import typer

from tersor.cli.app import app, reporting_errors

from tersor.cli import compress, finetune, curve, files, about  # isort: skip  (the order of commands in the help)

__all__ = ["about", "app", "compress", "curve", "files", "finetune", "main"]


def main() -> None:
    """Entry point of the ``tersor`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may not be printable where this runs
            stream.reconfigure(errors="backslashreplace")
    try:
        with reporting_errors():
            try:
                app(prog_name="tersor")
            finally:
                sys.stdout.flush()  # here a full disk has a message, at Python's end a traceback
    except BrokenPipeError:
        code = 1
    except typer.Exit as ended:
        code = ended.exit_code
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what cannot be written
    sys.exit(code)
