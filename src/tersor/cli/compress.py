"""Define the command ``tersor compress``."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import typer

from tersor.cli.app import (
    Architecture,
    Bits,
    Checkpoint,
    Data,
    EffortOption,
    Evaluate,
    Fast,
    Keep,
    Key,
    Prefix,
    app,
    reporting_errors,
    say,
)
from tersor.cli.work import (
    calibration_of,
    error_of,
    measure_of,
    mending,
    module_of,
    opened,
    overrides_of,
    post_training,
    quality_of,
    resuming,
    show,
)


@app.command(
    epilog="Examples:\n\n"
    "- `tersor compress model.safetensors -o model.tersor --ratio 20`\n"
    "- `tersor compress model.pt -o model.tersor --target-size 54kB`\n"
    "- `tersor compress model.safetensors.index.json -o model.tersor --bits-per-weight 1.5`\n"
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
        Path, typer.Option("--output", "-o", help="File to write.", show_default=False)
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
    fast: Fast = None,
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
) -> None:
    """Compress a checkpoint into a file of at most the asked size. Needs no model code.

    Give exactly one of --ratio, --target-size, --bits-per-weight, --max-drop and --lossless. With
    --model and --data, which are looked up from the current folder on, the model is run to see
    which weights matter, and layers make up for the errors of those before them. --max-drop needs
    --model and --eval.
    """
    with reporting_errors():
        from tersor.compression.driver import check_lossless, compress_source
        from tersor.compression.post_training import labelled
        from tersor.compression.prediction import unseen
        from tersor.progress import shown
        from tersor.storage import container, summary
        from tersor.storage.atomic import check_writable
        from tersor.storage.label import OUTPUT_ERROR, output_error_text, parse_metadata
        from tersor.text import printable

        check_writable(output, model)
        overrides = overrides_of(keep, bits, fast)
        if lossless:
            budgets = (ratio, target_size, bits_per_weight, max_drop, evaluate)
            check_lossless(budgets, data or architecture, overrides)
        said = parse_metadata(metadata or [])
        source = replace(
            opened(model, [output], key, prefix, exact=lossless), metadata=said, hashed=content_hash
        )
        module = module_of(source, architecture, {"--data": data, "--eval": evaluate})
        source, prepared = post_training(source, module, data, effort, evaluate)
        if prepared and prepared.held:  # reserves the bytes: the error is measured only at the end
            source = replace(source, metadata=said | {OUTPUT_ERROR: output_error_text(0.0)})
        mend = mending(prepared)
        quality = quality_of(measure_of(source, module, evaluate), max_drop, mend)
        calibration = calibration_of(source, prepared)
        options = [ratio, target_size, bits_per_weight, max_drop, keep, bits, fast]
        keeping = resuming(output, source, calibration, options)
        with nullcontext() if lossless else keeping as journal:
            with shown("compressing") as progress:
                archive = compress_source(
                    source,
                    ratio=ratio,
                    target_size=target_size,
                    bits_per_weight=bits_per_weight,
                    quality=quality,
                    lossless=lossless,
                    calibration=calibration,
                    overrides=overrides,
                    journal=journal,
                    progress=progress,
                )
            if quality is None:  # otherwise it is already the archive that was measured
                archive = mend(archive)
            if prepared and prepared.held:
                error, archive = error_of(archive, prepared), replace(archive, metadata=said)
                archive = archive if error is None else labelled(archive, error)
            with shown("writing") as progress:
                written = container.write(output, archive, progress)
        report = summary.summarize(archive, written)
        if calibration is not None:
            report = replace(report, warnings=report.warnings + unseen(calibration))
        show(report)
        if source.ignored:
            say(f"left out: {', '.join(map(printable, source.ignored))}")
        say(f"wrote {output}")
