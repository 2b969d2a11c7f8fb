# SPDX-License-Identifier: Apache-2.0
"""Define the command ``tersor finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from tersor.cli.app import TersorFile, app, reporting_errors
from tersor.cli.output import AsJson, Quiet, emit, say
from tersor.cli.work import telling


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
    teacher_key: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Which state dict of that checkpoint, if it has several."),
    ] = None,
    teacher_prefix: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of its names, dropped from them; tensors without it are left out."),
    ] = None,
    teacher_model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="MODULE:CALLABLE",
            help="Returns a teacher of another kind; without --teacher with its weights.",
        ),
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
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a compressed model further, within its size or a smaller one.

    What is stopped goes on where it was, from OUTPUT.checkpoint, when the same command is given.
    Under torchrun several processes share each batch, and with FSDP2 (accelerate launch) the model.
    """
    with reporting_errors():
        from tersor.cli import training as command

        checkpoint = output.with_name(f"{output.name}.checkpoint")
        with telling(checkpoint, checkpoint.is_file):
            result = command.run(
                model,
                output,
                architecture=architecture,
                train=data,
                validate=validate,
                teacher=teacher,
                teacher_key=teacher_key,
                teacher_prefix=teacher_prefix,
                teacher_architecture=teacher_model,
                data=command.Data(batch_size, image_size, mean, std),
                checkpoint=checkpoint,
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
        emit({"accuracy": result.value}, output)
