# SPDX-License-Identifier: Apache-2.0
"""Do the work of ``tersor finetune``, with models and data given by names and paths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tersor.calibration.samples import logits
from tersor.cli.user_code import call, make
from tersor.errors import BudgetError, InputError
from tersor.io import load, save
from tersor.nn.load import load_weights
from tersor.storage import label
from tersor.storage.atomic import check_writable
from tersor.storage.checkpoint import open_checkpoint
from tersor.storage.opened import open_file
from tersor.training.batches import Batch
from tersor.training.finetune import Finetuned, finetune
from tersor.training.images import Look, loader_of, open_images
from tersor.units import parse_size

_AROUND_LABEL = 8
"""Largest number of bytes that a label adds to a file besides its own: a checksum and sizes."""


@dataclass(frozen=True)
class Data:
    """Conversion of images in archives and folders to batches.

    Parameters
    ----------
    batch_size
        Number of images of a batch, over all processes; 128 by default.
    size
        Height and width in pixels to which image files are scaled and cropped; 224 by default.
    mean, std
        Mean and standard deviation of pixels from 0 to 1: numbers separated by commas, one, or one
        for each channel. By default 0 and 1.
    """

    batch_size: int = 128
    size: int = 224
    mean: str = "0"
    std: str = "1"

    def loader(self, option: str, name: str, *, training: bool) -> Iterable[Any]:
        """Return the loader that ``module:callable`` returns, or batches of the images at a path.

        Parameters
        ----------
        option
            Option of the command, for messages.
        name
            Its value: ``module:callable``, or a path for `tersor.training.images.open_images`.
        training
            Whether images are augmented and shuffled.

        Raises
        ------
        InputError
            If there is no such callable or path, or it does not give what is needed.
        """
        if ":" in name and not Path(name).exists():
            loader = call(option, name)
            if not isinstance(loader, Iterable):
                raise InputError(
                    f"{option} {name} returned a {type(loader).__name__}; an iterable of batches "
                    "(inputs, targets) is needed, such as a DataLoader"
                )
            return loader
        mean, std = numbers("--mean", self.mean), numbers("--std", self.std)
        if 0 in std:
            raise InputError("--std must not be 0: pixels are divided by it")
        look = Look(self.size, mean, std, training)
        return loader_of(open_images(Path(name), look), self.batch_size)


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Return the numbers in a text, which are separated by commas.

    Raises
    ------
    InputError
        If the text of the option holds anything else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{option} {text!r} is not a number, or numbers separated by commas"
        ) from None


def run(
    source: Path,
    output: Path,
    *,
    architecture: str,
    train: str,
    validate: str | None,
    teacher: Path | None,
    data: Data,
    checkpoint: Path,
    teacher_key: str | None = None,
    teacher_prefix: str | None = None,
    teacher_architecture: str | None = None,
    target_size: str | None = None,
    **options: Any,
) -> Finetuned:
    """Fine-tune the model of a file, and write it to another file with the same metadata.

    The checkpoint exists until the output is written. If there is one already, the run continues
    from it.

    Parameters
    ----------
    source, output
        Files to read and to write.
    architecture
        ``module:callable`` that makes the model.
    train, validate
        Data to train with, and to choose the best epoch with.
    teacher
        Checkpoint of the teacher.
    data
        Conversion of images to batches.
    checkpoint
        File from which a stopped run continues.
    teacher_key, teacher_prefix
        Key and prefix in the teacher's checkpoint, see `tersor.storage.checkpoint.open_checkpoint`.
    teacher_architecture
        ``module:callable`` that makes the teacher, including its weights if there is no checkpoint;
        by default that of the model.
    target_size
        Largest size of the output, such as ``"54kB"``; by default the size of the source.
    **options
        See `tersor.finetune`.

    Returns
    -------
    Finetuned
        Result with the size of the output.

    Raises
    ------
    BudgetError
        If the budget cannot be reached, or the metadata alone exceeds it.
    InputError
        If a file, a callable or an option does not fit.
    """
    check_writable(output, source)
    model = load(source, make(architecture))
    with open_file(source) as file:
        # Training changes the outputs, so that their measured error is no longer true.
        metadata = {key: v for key, v in file.metadata.items() if key != label.OUTPUT_ERROR}
        hashed = file.content_hash is not None
    if target_size is not None and (said := label.size(metadata, hashed)):
        allowed = parse_size(target_size) - said - _AROUND_LABEL
        if allowed <= 0:
            raise BudgetError(
                f"--target-size {target_size} is too little: the metadata of {source} alone, which "
                f"the output keeps, takes {said} bytes; allow more"
            )
        target_size = str(allowed)
    guide = None
    if teacher_architecture is not None:
        guide = make(teacher_architecture, "--teacher-model")
    elif teacher is not None:
        guide = make(architecture)
    if guide is not None and teacher is not None:
        load_weights(guide, open_checkpoint(teacher, key=teacher_key, prefix=teacher_prefix))
    loader = data.loader("--data", train, training=True)
    test = None if validate is None else data.loader("--validate", validate, training=False)
    result = finetune(
        model,
        loader,
        teacher=guide,
        evaluate=None if test is None else lambda trained: accuracy(trained, test),
        checkpoint=checkpoint,
        target_size=target_size,
        **options,
    )
    if is_first_process():
        written = save(model, output, metadata=metadata, content_hash=hashed)
        result = replace(result, nbytes=written.nbytes)
        checkpoint.unlink(missing_ok=True)
    finish_together()
    return result


def accuracy(model: nn.Module, loader: Iterable[Any]) -> float:
    """Return the percentage of inputs of which the class with the highest score is the label.

    Parameters
    ----------
    model
        Model, which is put into evaluation mode.
    loader
        Batches of inputs and class numbers.

    Raises
    ------
    InputError
        If there are no inputs.
    """
    device = next(model.parameters()).device
    right = total = 0
    for item in loader:
        batch = Batch.of(item, model).part(0, 1, device)
        scores = logits(model.eval()(*batch.args, **batch.kwargs))
        right += int((scores.argmax(1) == batch.targets).sum())
        total += len(batch.targets)
    if not total:
        raise InputError("the data to validate with are empty")
    return 100 * right / total


def is_first_process() -> bool:
    """Return whether this process is the one that writes files."""
    return not _are_several() or torch.distributed.get_rank() == 0


def finish_together() -> None:
    """Wait for the other processes of the training.

    If one process fails, torchrun stops all of them, including the one that still writes. A process
    that ends directly after a collective operation can fail: a thread of gloo returns tensors to a
    Python interpreter that has ended, and aborts (PyTorch 2.13).
    """
    if _are_several():
        torch.distributed.barrier()


def _are_several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
