# SPDX-License-Identifier: Apache-2.0
"""Define the command ``tersor compress``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
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
from tersor.cli.next_steps import next_steps
from tersor.cli.output import AsJson, Quiet, bar, emit, say
from tersor.cli.work import (
    Prepared,
    calibration_of,
    error_of,
    opened,
    overrides_of,
    prepared,
    quality_of,
    resuming,
    show,
    with_room,
)

if TYPE_CHECKING:  # slow imports are done where they are used
    from tersor.calibration.calibrate import Calibration
    from tersor.storage.archive import Archive
    from tersor.storage.checkpoint import Source
    from tersor.storage.journal import Journal
    from tersor.storage.summary import Report


@app.command(
    epilog="Examples:\n\n"
    "- `tersor compress model.safetensors -o model.tersor --ratio 20`\n"
    "- `tersor compress model.pt -o model.tersor --target-size 54kB`\n"
    "- `tersor compress model.safetensors.index.json -o model.tersor --bits-per-weight 1.5`\n"
    "- `tersor compress hf-folder -o small --ratio 8`\n"
    "- `tersor compress model.safetensors -o model.tersor --lossless`\n"
    "- `tersor compress model.pt -o model.tersor --ratio 20 --keep 'head.*' --bits 'conv1*=4'`\n"
    "- `tersor compress model.pt -o model.tersor --max-drop 0.5 --model net:make "
    "--eval net:accuracy`\n"
    "- `tersor compress model.pt -o model.tersor --ratio 20 --model net:make "
    "--data data:batches`"
)
def compress(
    model: Checkpoint,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write. If MODEL is a folder of Hugging Face and this does not end in "
            ".tersor: folder to write.",
            show_default=False,
        ),
    ],
    ratio: Annotated[
        Optional[float],  # noqa: UP045  (typer on Python 3.10)
        typer.Option(help="Size of the weights in MODEL over the size of the output."),
    ] = None,
    target_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Size of the output: 54kB (1 kB = 1000 bytes), 1.5MiB, 54000."),
    ] = None,
    bits_per_weight: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Bits of the whole output over the number of weights."),
    ] = None,
    max_drop: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="The smallest output of which the result of --eval is at most this much lower."
        ),
    ] = None,
    lossless: Annotated[
        bool,
        typer.Option("--lossless", help="Keep every bit of every tensor; the size follows."),
    ] = False,
    key: Key = None,
    prefix: Prefix = None,
    keep: Keep = None,
    bits: Bits = None,
    lookup: Lookup = None,
    metadata: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="KEY=TEXT",
            help="What the output says of itself: 'licence=MIT', name, source... Repeatable.",
        ),
    ] = None,
    content_hash: Annotated[
        bool,
        typer.Option("--content-hash", help="Store a SHA-256 of the tensors, for `tersor verify`."),
    ] = False,
    architecture: Architecture = None,
    data: Data = None,
    effort: EffortOption = "balanced",
    evaluate: Evaluate = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compress a checkpoint into a file of at most the asked size. Needs no model code.

    A folder of Hugging Face becomes a folder with the same configuration and tokenizer, which
    transformers loads after `import tersor.transformers`; about 100 bytes are added to the file.

    Give exactly one of --ratio, --target-size, --bits-per-weight, --max-drop and --lossless. With
    --model and --data, which are looked up from the current folder on, the model is run to see
    which weights matter, and layers make up for the errors of those before them. --max-drop needs
    --model and --eval.
    """
    with reporting_errors():
        from tersor.compression.driver import check_lossless, compress_source
        from tersor.report.table import to_json
        from tersor.storage.label import parse_metadata

        into_folder = _check(model, output)
        overrides = overrides_of(keep, bits, lookup)
        if lossless:
            budgets = (ratio, target_size, bits_per_weight, max_drop, evaluate)
            check_lossless(budgets, data or architecture, overrides)
        said = parse_metadata(metadata or [])
        source = opened(model, [] if into_folder else [output], key, prefix, exact=lossless)
        given = prepared(source, architecture, data, effort, evaluate)
        calibration = calibration_of(given)
        options = [ratio, target_size, bits_per_weight, max_drop, keep, bits, lookup]
        keeping = resuming(output, given.source, calibration, options)
        with nullcontext() if lossless else keeping as journal:
            with bar("compressing") as progress:
                archive = compress_source(
                    given.source,
                    ratio=ratio,
                    target_size=target_size,
                    bits_per_weight=bits_per_weight,
                    quality=quality_of(given.measure, max_drop, given.mend),
                    mend=given.mend,
                    lossless=lossless,
                    calibration=calibration,
                    overrides=overrides,
                    metadata=said | _reserved(given),
                    hashed=content_hash,
                    journal=journal,
                    progress=progress,
                )
            archive = _with_error(archive, given, said)
            write = _write_folder if into_folder else _write
            report = _report(archive, write(model, output, archive, journal), calibration)
        _tell(report, source)
        say(f"wrote {output}")
        next_steps(model, output, key, prefix)
        emit(to_json(report), output)


def _check(model: Path, output: Path) -> bool:
    """Return whether the output is a folder; raise an error if it cannot be written."""
    from tersor.storage.atomic import check_writable
    from tersor.storage.model_folder import check_folder

    into_folder = model.is_dir() and output.suffix != ".tersor" and not output.is_file()
    if into_folder:
        check_folder(model, output)
    else:
        check_writable(output, model)
    return into_folder


def _reserved(given: Prepared) -> dict[str, str]:
    """Return metadata of the length that the error will take, which is measured at the end."""
    from tersor.storage.label import OUTPUT_ERROR, output_error_text

    measures = given.post_training is not None and given.post_training.held
    return {OUTPUT_ERROR: output_error_text(0.0)} if measures else {}


def _with_error(archive: Archive, given: Prepared, said: Mapping[str, str]) -> Archive:
    """Return the archive with the error of its output on held-out batches, if there are any."""
    from tersor.compression.post_training import labelled

    if given.post_training is None or not given.post_training.held:
        return archive
    error, archive = error_of(archive, given.post_training), replace(archive, metadata=said)
    return archive if error is None else labelled(archive, error)


def _write(model: Path, output: Path, archive: Archive, journal: Journal | None) -> int:
    """Write the file; the checkpoint at ``model`` is not used."""
    from tersor.storage import container

    with bar("writing") as progress:
        write = partial(container.write, output, archive, progress)
        # The sections wait in a file of their own until the header is known.
        return with_room(write, output, 2 * container.size(archive), journal)


def _write_folder(model: Path, output: Path, archive: Archive, journal: Journal | None) -> int:
    """Write a folder with the other files of the folder ``model``, and return the file's size."""
    from tersor.storage.model_folder import write_compressed

    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name[:40]}.") as folder:
        file = Path(folder, "model.tersor")
        size = _write(model, file, archive, journal)
        kinds = (e.dtype for e in archive.entries.values() if e.dtype.is_floating_point)
        write_compressed(model, output, file, str(next(kinds, "float32")).removeprefix("torch."))
    return size


def _report(archive: Archive, nbytes: int, calibration: Calibration | None) -> Report:
    """Return the summary of the file, with a warning if batches did not reach all weights."""
    from tersor.compression.prediction import unseen
    from tersor.storage.summary import summarize

    report = summarize(archive, nbytes)
    if calibration is None:
        return report
    return replace(report, warnings=report.warnings + unseen(calibration))


def _tell(report: Report, source: Source) -> None:
    """Print the summary of the file, and what was left out of it."""
    from tersor.text import printable

    show(report)
    if source.ignored:
        say(f"left out: {', '.join(map(printable, source.ignored))}")
