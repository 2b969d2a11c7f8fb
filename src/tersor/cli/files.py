# SPDX-License-Identifier: Apache-2.0
"""Define the commands about a compressed file: decompress, inspect, report, verify."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from tersor.cli.app import (
    FAILED,
    Key,
    MaxBytes,
    Prefix,
    TersorFile,
    app,
    reporting_errors,
)
from tersor.cli.output import AsJson, Quiet, bar, console, emit, say


@app.command(
    epilog="Examples:\n\n- `tersor decompress model.tersor -o dense.safetensors`\n"
    "- `tersor decompress small -o dense`"
)
def decompress(
    model: TersorFile,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Safetensors file to write. If MODEL.tersor is a folder and this does not end in "
            ".safetensors: folder to write.",
            show_default=False,
        ),
    ],
    max_bytes: MaxBytes = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Give back the dense tensors, with the names, shapes and types that they came with.

    A folder that `tersor compress` wrote becomes a folder that transformers loads without tersor.
    """
    with reporting_errors():
        from tersor.io import export_safetensors
        from tersor.storage.model_folder import check_folder, is_compressed, write_dense

        into_folder = is_compressed(model) and output.suffix != ".safetensors"
        if into_folder:
            check_folder(model, output)
        with bar("decompressing") as progress:
            export = partial(export_safetensors, model, max_bytes=max_bytes, progress=progress)
            written = write_dense(model, output, export) if into_folder else export(output)
        say(f"wrote {output}: {written} bytes")
        emit({}, output)


@app.command(
    epilog="Examples:\n\n- `tersor inspect model.tersor`\n"
    "- `tersor inspect model.tersor --json | jq .ratio`\n"
    "- `tersor inspect model.tersor --model net:make --memory 8MB`"
)
def inspect(
    model: TersorFile,
    as_json: AsJson = False,
    architecture: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--model",
            metavar="MODULE:CALLABLE",
            help="Returns the model: also show how each weight would best be computed with here.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Most memory that the weights may take then, such as 8MB."),
    ] = None,
    max_bytes: MaxBytes = None,
) -> None:
    """Show what a file holds, from the file alone, and how `tersor.optimize` would run it."""
    with reporting_errors():
        from tersor.errors import InputError
        from tersor.io import inspect as inspect_file
        from tersor.report import table

        report, chosen = inspect_file(model, max_bytes=max_bytes), None
        if architecture is not None:
            from tersor.cli.user_code import make
            from tersor.inference.optimize import optimize
            from tersor.io import load

            filled = load(model, make(architecture).eval(), max_bytes=max_bytes)
            chosen = optimize(filled, memory=memory)
        elif memory is not None:
            raise InputError("--memory needs --model, which says what the weights are used for")
        console.print(table.render(report, chosen))
        emit(table.to_json(report, chosen))


@app.command(
    epilog="Examples:\n\n- `tersor report model.tersor -o report.html`\n"
    "- `tersor report model.tersor -o report.html --dense model.safetensors --curve curve.json`"
)
def report(
    model: TersorFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="HTML file to write.", show_default=False)
    ],
    dense: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Checkpoint that the file was made from, to measure against."),
    ] = None,
    key: Key = None,
    prefix: Prefix = None,
    curve: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="JSON file that `tersor curve` wrote; this file's size is marked."),
    ] = None,
    max_bytes: MaxBytes = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained page: where the bytes are, what was lost, what is in each layer."""
    with reporting_errors():
        from tersor.compression import curve_file
        from tersor.report import html
        from tersor.report.facts import gather
        from tersor.storage.atomic import check_writable
        from tersor.units import parse_size

        for source in filter(None, (model, dense, curve)):
            check_writable(output, source)
        points = None if curve is None else curve_file.read(curve)
        limit = None if max_bytes is None else parse_size(max_bytes)
        with bar("reading") as progress:
            facts = gather(model, dense, progress, key=key, prefix=prefix, max_bytes=limit)
        written = html.write(output, facts, points)
        say(f"wrote {output}: {written} bytes")
        emit({}, output)


@app.command(epilog="Example: `tersor verify model.tersor`")
def verify(
    model: TersorFile,
    max_bytes: MaxBytes = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check all of a file: header, checksums, and that every tensor can be decoded.

    Prints a line for each problem; the exit code is 2 if there is any, else 0.
    """
    with reporting_errors():
        from tersor.io import verify as verify_file

        with bar("verifying") as progress:
            found = verify_file(model, max_bytes=max_bytes, progress=progress)
    for problem in found.problems:
        say(f"{model}: {problem}")
    if not found.problems:
        say(f"{model} is intact: {found.tensors} tensors, {found.nbytes} bytes")
    emit({"path": str(model), "intact": not found.problems, **asdict(found)})
    if found.problems:
        raise typer.Exit(FAILED)
