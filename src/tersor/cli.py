"""The command line: parse, call, print."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console

if TYPE_CHECKING:  # what makes the start slow is imported where it is used
    from tersor.calibration import Calibration
    from tersor.storage.checkpoint import Source

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a trained PyTorch model many times smaller, as one real file.",
    epilog="Start with: `tersor compress model.safetensors -o model.tersor --ratio 20`",
)
console = Console()
errors = Console(stderr=True)

FAILED = 2
"""Exit code of everything that stops a command, apart from a bug in tersor."""

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Checkpoint: .safetensors, its .index.json if sharded, or .pt/.pth/.bin/.ckpt "
        "(weights only; never unpickled).",
        show_default=False,
    ),
]
TersorFile = Annotated[
    Path, typer.Argument(metavar="MODEL.tersor", help="Compressed file.", show_default=False)
]
MaxBytes = Annotated[
    Optional[str],  # noqa: UP045  (typer on Python 3.10)
    typer.Option(
        help="Refuse a file that would take more memory than this once decoded: 8GB, 500MiB.",
        show_default="64GiB",
    ),
]


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Turn what a user can mend into a message and an exit code."""
    from tersor.errors import TersorError

    try:
        yield
    except BrokenPipeError:  # who reads the output has seen enough, as in `tersor inspect | head`
        raise
    except (TersorError, OSError, MemoryError) as error:
        errors.print("[red]error:[/]", end=" ")
        say(_message(error), errors)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        say("interrupted; earlier files are as they were", errors)
        raise typer.Exit(FAILED) from None


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; earlier files are as they were"
    return str(error) or "there is not enough memory for this"


def say(text: str, where: Console = console) -> None:
    """Print a line as it is: names in it may look like markup, or be long."""
    where.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


@app.command(
    epilog="Examples:\n\n"
    "- `tersor compress model.safetensors -o model.tersor --ratio 20`\n"
    "- `tersor compress model.pt -o model.tersor --target-size 54kB`\n"
    "- `tersor compress model.safetensors.index.json -o model.tersor --bits-per-weight 1.5`\n"
    "- `tersor compress model.safetensors -o model.tersor --lossless`\n"
    "- `tersor compress model.pt -o model.tersor --ratio 20 --model net:make "
    "--calibrate data:batches`"
)
def compress(
    model: Checkpoint,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write.", show_default=False)
    ],
    ratio: Annotated[
        Optional[float],  # noqa: UP045  (typer on Python 3.10)
        typer.Option(help="Size of MODEL on disk over the size of the output."),
    ] = None,
    target_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Size of the output: 54kB (1 kB = 1000 bytes), 1.5MiB, 54000."),
    ] = None,
    bits_per_weight: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Bits of the whole output over the number of weights."),
    ] = None,
    lossless: Annotated[
        bool,
        typer.Option("--lossless", help="Keep every bit of every tensor; the size follows."),
    ] = False,
    architecture: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--model",
            metavar="MODULE:CALLABLE",
            help="For --calibrate: returns the nn.Module that MODEL holds the weights of.",
        ),
    ] = None,
    calibrate: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="MODULE:CALLABLE",
            help="Returns batches of typical inputs (tensors, tuples or dicts), no labels needed.",
        ),
    ] = None,
) -> None:
    """Compress a checkpoint into a file of at most the asked size. Needs no model code.

    Give exactly one of --ratio, --target-size, --bits-per-weight and --lossless. With --model and
    --calibrate, which are looked up from the current folder on, the model is run to see which
    weights matter.
    """
    with reporting_errors():
        from tersor.compress import check_lossless, compress_source
        from tersor.plan.progress import shown
        from tersor.report import table
        from tersor.storage import container, summary
        from tersor.storage.atomic import check_writable
        from tersor.storage.checkpoint import open_checkpoint

        check_writable(output, model)
        if lossless:
            check_lossless(ratio, target_size, bits_per_weight, calibrate or architecture)
        source = open_checkpoint(model)
        calibration = _calibration(source, architecture, calibrate)
        with shown("compressing") as progress:
            archive = compress_source(
                source,
                ratio=ratio,
                target_size=target_size,
                bits_per_weight=bits_per_weight,
                lossless=lossless,
                calibration=calibration,
                progress=progress,
            )
        with shown("writing") as progress:
            written = container.write(output, archive, progress)
        console.print(table.render(summary.summarize(archive, written)))
        if source.ignored:
            say(f"left out: {', '.join(source.ignored)}")
        say(f"wrote {output}")


def _calibration(source: Source, model: str | None, loader: str | None) -> Calibration | None:
    """What the options --model and --calibrate ask for; notes go to standard error."""
    if model is None and loader is None:
        return None
    from tersor.user_code import calibrate_source

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"note: {message}", errors)
        calibration = calibrate_source(source, model, loader)
    for name, reason in calibration.skipped.items():
        say(f"note: {name} is compressed without calibration: {reason}", errors)
    return calibration


@app.command(epilog="Example: `tersor decompress model.tersor -o dense.safetensors`")
def decompress(
    model: TersorFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Safetensors file to write.", show_default=False)
    ],
    max_bytes: MaxBytes = None,
) -> None:
    """Give back the dense tensors, with the names, shapes and types that they came with."""
    with reporting_errors():
        from tersor.files import export_safetensors
        from tersor.plan.progress import shown

        with shown("decompressing") as progress:
            written = export_safetensors(model, output, max_bytes=max_bytes, progress=progress)
        say(f"wrote {output}: {written} bytes")


@app.command(
    epilog="Examples:\n\n- `tersor inspect model.tersor`\n"
    "- `tersor inspect model.tersor --json | jq .ratio`"
)
def inspect(
    model: TersorFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a file holds, from the file alone."""
    with reporting_errors():
        from tersor.files import inspect as inspect_file
        from tersor.report import table

        report = inspect_file(model)
        if as_json:
            sys.stdout.write(json.dumps(table.to_json(report), indent=2) + "\n")
        else:
            console.print(table.render(report))


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
    curve: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="JSON file that `tersor curve` wrote; this file's size is marked."),
    ] = None,
) -> None:
    """Write one self-contained page: where the bytes are, what was lost, what is in each layer."""
    with reporting_errors():
        from tersor.plan.progress import shown
        from tersor.report import curve_file, html
        from tersor.report.facts import gather
        from tersor.storage.atomic import check_writable

        for source in filter(None, (model, dense, curve)):
            check_writable(output, source)
        points = None if curve is None else curve_file.read(curve)
        with shown("reading") as progress:
            facts = gather(model, dense, progress)
        written = html.write(output, facts, points)
        say(f"wrote {output}: {written} bytes")


@app.command(epilog="Example: `tersor verify model.tersor`")
def verify(model: TersorFile, max_bytes: MaxBytes = None) -> None:
    """Check all of a file: header, checksums, and that every tensor can be decoded.

    Prints a line for each problem; the exit code is 2 if there is any, else 0.
    """
    with reporting_errors():
        from tersor.files import verify as verify_file
        from tersor.plan.progress import shown

        with shown("verifying") as progress:
            found = verify_file(model, max_bytes=max_bytes, progress=progress)
    for problem in found.problems:
        say(f"{model}: {problem}")
    if found.problems:
        raise typer.Exit(FAILED)
    say(f"{model} is intact: {found.tensors} tensors, {found.nbytes} bytes")


@app.command(epilog="Example: `tersor info`")
def info() -> None:
    """Show versions, which kernels are there, and the number of threads."""
    from tersor.report.info import environment

    for name, value in environment().items():
        say(f"{name:<14}{value}")


@app.command(epilog="Example: `tersor demo --output demo`")
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the files and the picture.")
    ] = Path("demo"),
) -> None:
    """Train a small network on handwritten digits, compress it 10 and 30 times, compare."""
    with reporting_errors():
        from tersor.demo import run

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
    """Options of all commands."""


def main() -> None:
    """Entry point of the ``tersor`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may not be printable where this runs
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="tersor")
