# SPDX-License-Identifier: Apache-2.0
"""Write and read the checkpoint from which a stopped fine-tuning run continues.

A checkpoint is one file. A new checkpoint replaces the old one atomically.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from tersor.errors import InputError
from tersor.storage.atomic import replacing
from tersor.storage.planes import elements

_VERSION = 1

_SAMPLE = 1024
"""Largest number of elements of one tensor that `identity` reads."""


@dataclass
class Progress:
    """State of a run: how far it is, and its results so far.

    Parameters
    ----------
    epoch, batch
        Number of complete epochs, and number of complete batches in the epoch after these.
    step
        Number of optimizer steps so far.
    lagrangian
        Lagrangian, λ, which is adjusted so that the file stays within its budget.
    overhead_bytes
        Approximate bytes of the file besides the integers of the latents.
    losses
        Sum of the losses of the complete batches in this epoch.
    best
        Highest value that ``evaluate`` returned for a file within the final budget; None if there
        is none.
    file
        Content of the file to return, which is within the final budget: the file with the highest
        value, or the last file if there is no ``evaluate``. Empty if there is none.
    history
        For each epoch its number, its loss, and the bytes and the value of its file.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    lagrangian: float = 0.0
    overhead_bytes: float = 0.0
    losses: float = 0.0
    best: float | None = None
    file: bytes = b""
    history: list[dict[str, Any]] = field(default_factory=list)


def identity(model: nn.Module) -> str:
    """Return a text that identifies a model: its class, its size, and a checksum of samples.

    Parameters
    ----------
    model
        Model on any device.

    Returns
    -------
    str
        The text. It depends on the names of all tensors, their shapes, and up to 1024 elements of
        each.
    """
    checksum, count = 0, 0
    for name, tensor in model.state_dict().items():
        checksum = zlib.crc32(name.encode(), checksum)
        if _is_plain(tensor):
            count += tensor.numel()
            checksum = zlib.crc32(_sample(tensor), checksum)
    return f"{type(model).__name__}, {count} numbers, checksum {checksum:08x}"


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """Return whether a value is a tensor whose bytes can be read."""
    if not isinstance(value, Tensor) or type(value) not in (Tensor, nn.Parameter):
        return False  # a subclass may hold its elements elsewhere
    return value.layout is torch.strided and not value.is_quantized and not value.is_meta


def _sample(tensor: Tensor) -> bytes:
    """Return the shape of a tensor and some of its elements, evenly spaced, as bytes."""
    flat = tensor.detach().reshape(-1)
    some = flat[:: -(-flat.numel() // _SAMPLE) or 1]
    return repr(tuple(tensor.shape)).encode() + elements(some, exact=True).words.tobytes()


def write(
    path: Path, progress: Progress, options: Mapping[str, Any], states: Mapping[str, Any]
) -> None:
    """Write a checkpoint.

    Parameters
    ----------
    path
        File to write or to replace.
    progress
        State of the run.
    options
        Options of the run. `read` requires the same ones.
    states
        States of the parts of the run, such as the model and the optimizer.

    Raises
    ------
    OSError
        If the file cannot be written. An earlier checkpoint is then unchanged.
    """
    content = {"version": _VERSION, "options": dict(options), "states": dict(states)}
    numbers = asdict(progress)
    numbers["price"] = numbers.pop("lagrangian")  # its name in the file
    numbers["file"] = torch.from_numpy(np.frombuffer(progress.file, np.uint8).copy())
    with replacing(path) as temporary, temporary.open("wb") as file:
        _save(content | {"progress": numbers}, file)


def _save(content: object, file: BinaryIO) -> None:
    """Call `torch.save`, and raise an OSError if the disk is full.

    `torch.save` does not report a full disk if it is given a path. If it is given a file, it may
    raise a RuntimeError in the place of the OSError.
    """
    try:
        torch.save(content, file)
    except RuntimeError as error:  # after the OSError it still tries to write the file's end
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def read(path: Path, options: Mapping[str, Any]) -> tuple[Progress, dict[str, Any]]:
    """Return the progress and the states in the checkpoint of a run.

    Parameters
    ----------
    path
        File that `write` wrote.
    options
        Options of the run that is to continue.

    Returns
    -------
    progress : Progress
        State of the run.
    states : dict
        States of the parts of the run, on the CPU.

    Raises
    ------
    InputError
        If the file is not a checkpoint, or if its run had other options. The message lists these.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        numbers, saved, states = content["progress"], content["options"], content["states"]
        assert content["version"] == _VERSION
        numbers["file"] = numbers["file"].numpy().tobytes()
        progress = Progress(lagrangian=numbers.pop("price"), **numbers)
    except Exception:  # torch raises errors of many types, depending on the damaged byte
        raise InputError(
            f"{path} is damaged, or no checkpoint of tersor.finetune; remove it or give another "
            "name"
        ) from None
    changed = [n for n in options if saved.get(n) != options[n]]
    if changed:
        lines = ", ".join(f"{n} {saved.get(n)!r} before, {options[n]!r} now" for n in changed)
        raise InputError(
            f"the run in {path} has other options: {lines}. Give the same ones to go on with it, "
            "or remove the file to begin anew"
        )
    return progress, states
