# SPDX-License-Identifier: Apache-2.0
"""Define the command ``tersor curve``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from tersor.cli.app import (
    Architecture,
    Bits,
    Checkpoint,
    Data,
    EffortOption,
    Evaluate,
    Keep,
    Key,
    Lookup,
    Prefix,
    app,
    reporting_errors,
)
from tersor.cli.output import AsJson, Quiet, bar, console, emit, say
from tersor.cli.work import calibration_of, opened, overrides_of, prepared, resuming

if TYPE_CHECKING:  # slow imports are done where they are used
    from tersor.compression.curve_file import Curve


@app.command(
    epilog="Examples:\n\n"
    "- `tersor curve model.safetensors -o curve.json --plot curve.png`\n"
    "- `tersor curve model.pt -o curve.json --model net:make --eval net:accuracy`"
)
def curve(
    model: Checkpoint,
    output: Annotated[
        Optional[Path],  # noqa: UP045  (typer on Python 3.10)
        typer.Option("--output", "-o", help="JSON file to write.", show_default=False),
    ] = None,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Picture to write: .png, .svg or .pdf.", show_default=False),
    ] = None,
    points: Annotated[int, typer.Option(help="Sizes of the curve.")] = 16,
    key: Key = None,
    prefix: Prefix = None,
    keep: Keep = None,
    bits: Bits = None,
    lookup: Lookup = None,
    architecture: Architecture = None,
    data: Data = None,
    effort: EffortOption = "balanced",
    evaluate: Evaluate = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Show quality against size, 4 to 40 times smaller, before the work.

    Without --eval that is the squared error alone. With --model and --eval the quality is measured
    of the dense model and at four of the sizes, and predicted at the others.
    """
    with reporting_errors():
        from tersor.compression import curve_file
        from tersor.compression.compressor import Compressor
        from tersor.compression.curve import trace
        from tersor.report import curve_picture

        outputs = _checked(model, output, plot)
        overrides = overrides_of(keep, bits, lookup)
        source = opened(model, outputs, key, prefix)
        given = prepared(source, architecture, data, effort, evaluate)
        source, calibration = given.source, calibration_of(given)
        measure, mend = given.measure, given.mend
        beside, options = output or plot, [points, keep, bits, lookup]
        with (
            resuming(beside, source, calibration, options) if beside else nullcontext() as journal,
            bar("tracing") as progress,
        ):
            compressor = Compressor(
                source,
                calibration=calibration,
                overrides=overrides,
                journal=journal,
                progress=progress,
            )
            found = trace(
                compressor,
                source.nbytes,
                points=points,
                measure=measure and (lambda archive: measure(archive and mend(archive))),
                metric=evaluate and evaluate.rpartition(":")[2],
            )
            _write(found, output, plot)
        console.print(curve_picture.render(found))
        for path in outputs:
            say(f"wrote {path}")
        emit(curve_file.to_json(found), *outputs)


def _checked(model: Path, output: Path | None, plot: Path | None) -> list[Path]:
    """Return the files to write; raise an error if one cannot be written."""
    from tersor.report.curve_picture import check_picture
    from tersor.storage.atomic import check_writable

    outputs = [path for path in (output, plot) if path is not None]
    for path in outputs:
        check_writable(path, model)
    if plot is not None:
        check_picture(plot)
    return outputs


def _write(found: Curve, output: Path | None, plot: Path | None) -> None:
    from tersor.compression import curve_file
    from tersor.report import curve_picture

    if output is not None:
        curve_file.write(output, found)
    if plot is not None:
        curve_picture.draw(plot, found)
