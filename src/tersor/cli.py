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

    Give exactly one of --ratio, --target-size and --bits-per-weight. With --model and --calibrate,
    which are looked up from the current folder on, the model is run to see which weights matter.
    """
    with reporting_errors():
        from tersor.compress import compress_source
        from tersor.plan.progress import shown
        from tersor.report import table
        from tersor.storage import container, summary
        from tersor.storage.atomic import check_writable
        from tersor.storage.checkpoint import open_checkpoint

        check_writable(output, model)
        source = open_checkpoint(model)
        calibration = _calibration(source, architecture, calibrate)
        with shown("compressing") as progress:
            archive = compress_source(
                source,
                ratio=ratio,
                target_size=target_size,
                bits_per_weight=bits_per_weight,
                calibration=calibration,
                progress=progress,
            )
        written = container.write(output, archive)
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


@app.command(
    epilog="Examples:\n\n"
    "- `tersor finetune model.tersor -o better.tersor --model net:make --data cifar-10-batches-bin "
    "--validate cifar-10-batches-bin/test_batch.bin --teacher model.safetensors`\n"
    "- `tersor finetune model.tersor -o better.tersor --model net:make --data data:batches "
    "--target-size 27kB --epochs 30`"
)
def finetune(
    model: TersorFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write.", show_default=False)
    ],
    architecture: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODULE:CALLABLE", help="Returns the nn.Module.", show_default=False
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Training data: an .npz archive with x (uint8 images) and y, a folder of CIFAR-10 "
            ".bin files or of images by class, or MODULE:CALLABLE, which returns a loader.",
            show_default=False,
        ),
    ],
    validate: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Data to choose the best epoch by, of the same kinds."),
    ] = None,
    teacher: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Checkpoint of the dense model, whose answers are learnt."),
    ] = None,
    target_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Size of the output: 54kB, 1.5MiB, 54000; by default that of MODEL."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Times to go through the data.")] = 10,
    lr: Annotated[float, typer.Option(help="Learning rate, as for the dense model.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Images of a batch.", min=1)] = 128,
    image_size: Annotated[int, typer.Option(help="Of images in folders.", min=1)] = 224,
    mean: Annotated[str, typer.Option(help="Of pixels from 0 to 1, as in 0.5,0.5,0.5.")] = "0",
    std: Annotated[str, typer.Option(help="What they are divided by then.")] = "1",
    accumulate: Annotated[int, typer.Option(help="Batches for each step.")] = 1,
    mixed_precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    seed: Annotated[int, typer.Option(help="Of all random numbers.", min=0)] = 0,
    log: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="JSON file to write with the options and what each epoch gave."),
    ] = None,
) -> None:
    """Train a compressed model further, within its size or a smaller one.

    What is stopped goes on where it was, from OUTPUT.checkpoint, when the same command is given.
    Under torchrun several processes share each batch.
    """
    with reporting_errors():
        from tersor.training import command

        result = command.run(
            model,
            output,
            architecture=architecture,
            train=data,
            validate=validate,
            teacher=teacher,
            data=command.Data(batch_size, image_size, mean, std),
            target_size=target_size,
            epochs=epochs,
            lr=lr,
            accumulate=accumulate,
            mixed_precision=mixed_precision,
            seed=seed,
            log=log,
        )
        value = "" if result.value is None else f", accuracy {result.value:.2f} %"
        say(f"wrote {output}: {result.nbytes} bytes{value}")


@app.command(epilog="Example: `tersor decompress model.tersor -o dense.safetensors`")
def decompress(
    model: TersorFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Safetensors file to write.", show_default=False)
    ],
) -> None:
    """Give back the dense tensors, with the names, shapes and types that they came with."""
    with reporting_errors():
        from tersor.files import export_safetensors

        written = export_safetensors(model, output)
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
