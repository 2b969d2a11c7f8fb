# SPDX-License-Identifier: Apache-2.0
"""Define what all commands share: the application, types of arguments, and error messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer

from tersor.cli.output import errors, say
from tersor.compression.effort import Effort
from tersor.errors import TersorError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a trained PyTorch model many times smaller, as one real file.",
    epilog="Start with: `tersor compress model.safetensors -o model.tersor --ratio 20`",
)

FAILED = 2
"""Exit code after any error, except after Ctrl-C and after a bug in tersor."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, the usual one: 128 plus the number of the signal."""

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Checkpoint: .safetensors, .pt/.pth/.bin/.ckpt (weights only; never unpickled), the "
        ".index.json of sharded ones, .gguf, .onnx, or a folder with one of them.",
        show_default=False,
    ),
]
Key = Annotated[
    Optional[str],  # noqa: UP045  (typer on Python 3.10)
    typer.Option(
        help="Which state dict of a .pt/.pth/.bin/.ckpt checkpoint to take, if it has several: "
        "'generator'.",
    ),
]
Prefix = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Of the checkpoint take only tensors whose names start with this, such as 'model.', "
        "and drop it from the names.",
    ),
]
TersorFile = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL.tersor",
        help="Compressed file, or folder of Hugging Face with one.",
        show_default=False,
    ),
]
MaxBytes = Annotated[
    Optional[str],  # noqa: UP045  (typer on Python 3.10)
    typer.Option(
        help="Refuse a file that would take more memory than this once decoded: 8GB, 500MiB.",
        show_default="64GiB, and what this machine has left",
    ),
]

Architecture = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--model",
        metavar="MODULE:CALLABLE",
        help="For --data and --eval: returns the nn.Module that MODEL holds the weights of.",
    ),
]
Data = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="MODULE:CALLABLE",
        help="Returns batches of typical inputs (tensors, tuples or dicts), no labels needed.",
    ),
]
EffortOption = Annotated[
    Effort,
    typer.Option(
        help="With --data: calibrate only (fast), reconstruct layers too (balanced), or that as "
        "long as it helps (best)."
    ),
]
Evaluate = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--eval",
        metavar="MODULE:CALLABLE",
        help="Is called with the nn.Module and returns its quality, such as percent correct: a "
        "number, higher is better.",
    ),
]
Keep = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        metavar="PATTERN",
        help="Keep weights whose names match, such as 'head.*', exactly. Repeatable.",
    ),
]
Bits = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        metavar="PATTERN=NUMBER",
        help="Bits per weight, at most, of those that match: 'conv1*=4'. Repeatable.",
    ),
]
Lookup = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        metavar="PATTERN",
        help="Make matrices whose names match, such as 'encoder.*', binary, for look-up "
        "kernels: they compute faster than others but are less accurate. Repeatable.",
    ),
]


_NO_MEMORY = re.compile("can't allocate memory|out of memory")
"""Text in the RuntimeError that PyTorch raises if the processor or a GPU has no memory left."""


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Turn errors that a user can correct into a message and an exit code.

    Raises
    ------
    typer.Exit
        If such an error is raised, with the code `FAILED`, or with `INTERRUPTED` after Ctrl-C.
    BrokenPipeError
        If the program that reads the output has ended.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of the output ended, as in `tersor inspect | head`
        raise
    except (TersorError, OSError, MemoryError, RuntimeError) as error:
        if (message := _message(error)) is None:
            raise
        errors.print("[red]error:[/]", end=" ")
        say(message, errors)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        say("interrupted; earlier files are as they were", errors)
        raise typer.Exit(INTERRUPTED) from None


def _message(error: Exception) -> str | None:
    """Return a message that tells the user what to do about an error; None for a bug."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; earlier files are as they were"
    if isinstance(error, TersorError | OSError):
        return str(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        asked = re.search(r"llocate ([0-9.]+ \w+)", str(error))
        return (
            f"there is not enough memory{f' for {asked[1]} more' if asked else ''}; earlier files "
            "are as they were. Close other programs, or use a machine with more"
        )
    return None
