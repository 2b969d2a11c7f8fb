# SPDX-License-Identifier: Apache-2.0
"""Run the command line: parse arguments, call the library, print results.

Each command imports the modules that it needs when it is called, so that the start is quick.
"""

import io
import os
import sys

import typer

from tersor.cli.app import app, reporting_errors

from tersor.cli import compress, finetune, curve, files, export, about  # isort: skip  (the order of commands in the help)

__all__ = ["about", "app", "compress", "curve", "export", "files", "finetune", "main"]


def main() -> None:
    """Run the ``tersor`` command, and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the terminal may not be able to print names
            stream.reconfigure(errors="backslashreplace")
    try:
        with reporting_errors():
            try:
                app(prog_name="tersor")
            finally:
                sys.stdout.flush()  # a full disk is reported here; at exit it would be a traceback
    except BrokenPipeError:
        code = 1
    except typer.Exit as ended:
        code = ended.exit_code
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards what is left
    sys.exit(code)
