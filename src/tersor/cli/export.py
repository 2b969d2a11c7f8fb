# SPDX-License-Identifier: Apache-2.0
"""Define the commands ``tersor export TARGET``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from tersor.cli.app import TersorFile, app, reporting_errors
from tersor.cli.output import AsJson, Quiet, emit, note, say

targets = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Export a compressed file to another runtime, which then needs no model code.",
    epilog="Start with: `tersor export onnx model.tersor --model net.py:make --inputs "
    "net.py:example -o folder`",
)
app.add_typer(targets, name="export")


Architecture = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODULE:CALLABLE",
        help="Returns the nn.Module that MODEL.tersor holds the weights of.",
        show_default=False,
    ),
]
Inputs = Annotated[
    str,
    typer.Option(
        metavar="MODULE:CALLABLE",
        help="Returns typical inputs: a tensor, a tuple of all arguments, or a dict by name.",
        show_default=False,
    ),
]
Folder = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False)
]


@targets.command(
    epilog="Examples:\n\n- `tersor export onnx model.tersor --model net.py:make --inputs "
    "net.py:example -o folder`\n- `tersor export onnx model.tersor --model net.py:make --inputs "
    'net.py:example -o folder --dynamic \'{"tokens": {"0": "batch", "1": "length"}}\'`'
)
def onnx(
    model: TersorFile,
    architecture: Architecture,
    inputs: Inputs,
    output: Folder,
    dynamic: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="JSON",
            help="Axes of any length by argument and position; {} for none. By default the batch.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Compare outputs of ONNX Runtime with those of torch.")
    ] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a graph without weights beside the small file, for ONNX Runtime.

    `tersor.export.onnx_session` runs the folder. Prints sizes and the largest relative error.
    """
    with reporting_errors():
        from tersor.cli import user_code
        from tersor.export.to_onnx import onnx as export

        axes = None if dynamic is None else _axes(dynamic)
        network, example = user_code.make(architecture), user_code.call("--inputs", inputs)
        done = export(network, example, output, file=model, dynamic=axes, check=check)
        for name, nbytes in done.nbytes.items():
            say(f"wrote {output / name}: {nbytes} bytes")
        if done.error is not None:
            say(f"largest relative error of outputs against torch: {done.error:.1e}")
        for text in done.notes:
            note(text)
        emit({"error": done.error, "notes": list(done.notes)}, *map(output.joinpath, done.nbytes))


@targets.command(
    epilog="Example: `tersor export c model.tersor --model net.py:make --inputs net.py:example "
    "-o firmware`"
)
def c(
    model: TersorFile,
    architecture: Architecture,
    inputs: Inputs,
    output: Folder,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a program in C99 that computes with the small file, for microcontrollers.

    It takes no memory but what the application gives it. `make check` in the folder compares its
    outputs with those of torch. Prints what it takes.
    """
    with reporting_errors():
        from tersor.cli import user_code
        from tersor.export.to_c import c as export

        network, example = user_code.make(architecture), user_code.call("--inputs", inputs)
        done = export(network, example, output, file=model)
        for name, number in done.rows.items():
            say(f"{name}: {number}")
        emit({"rows": done.rows}, output)


def _axes(text: str) -> dict[str, dict[int, str]]:
    """Return the value of --dynamic.

    Raises
    ------
    InputError
        If it is not JSON of that form.
    """
    from tersor.errors import InputError

    try:
        return {
            str(name): {int(axis): str(called) for axis, called in axes.items()}
            for name, axes in json.loads(text).items()
        }
    except (ValueError, AttributeError):
        raise InputError(
            f"--dynamic {text!r} is not of the form "
            '{"argument": {"0": "batch"}}, with the position and a name of each axis'
        ) from None
