"""What a run needs to go on where it was stopped: one file, replaced atomically."""

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
"""Elements of each tensor that a model is told by."""


@dataclass
class Progress:
    """How far a run is, and what it has found.

    Parameters
    ----------
    epoch, batch
        Epochs that are complete, and batches of the next one that are.
    step
        Steps of the optimizer so far.
    price
        Price of a bit that keeps the budget.
    rest
        Bytes of the file besides the latents' integers, about.
    losses
        Sum of the losses of the batches of this epoch.
    best
        Highest value of the evaluations of files within the final budget.
    file
        Content of the file to be returned: the best, or the last where nothing is evaluated.
    history
        For each epoch its number, loss, bytes and value.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    price: float = 0.0
    rest: float = 0.0
    losses: float = 0.0
    best: float | None = None
    file: bytes = b""
    history: list[dict[str, Any]] = field(default_factory=list)


def identity(model: nn.Module) -> str:
    """What tells a model from others, in words: its class, its size, a checksum of samples."""
    checksum, count = 0, 0
    for name, tensor in model.state_dict().items():
        checksum = zlib.crc32(name.encode(), checksum)
        if _is_plain(tensor):
            count += tensor.numel()
            checksum = zlib.crc32(_sample(tensor), checksum)
    return f"{type(model).__name__}, {count} numbers, checksum {checksum:08x}"


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether this is a tensor whose elements have bytes to look at."""
    if not isinstance(value, Tensor) or type(value) not in (Tensor, nn.Parameter):
        return False  # those of subclasses may be elsewhere
    return value.layout is torch.strided and not value.is_quantized and not value.is_meta


def _sample(tensor: Tensor) -> bytes:
    """Shape and bytes of some elements, spread over all."""
    flat = tensor.detach().reshape(-1)
    some = flat[:: -(-flat.numel() // _SAMPLE) or 1]
    return repr(tuple(tensor.shape)).encode() + elements(some, exact=True).words.tobytes()


def write(
    path: Path, progress: Progress, options: Mapping[str, Any], states: Mapping[str, Any]
) -> None:
    """Write a checkpoint: progress, the options of the run, and states of its parts."""
    content = {"version": _VERSION, "options": dict(options), "states": dict(states)}
    numbers = asdict(progress)
    numbers["file"] = torch.from_numpy(np.frombuffer(progress.file, np.uint8).copy())
    with replacing(path) as temporary, temporary.open("wb") as file:
        _save(content | {"progress": numbers}, file)


def _save(content: object, file: BinaryIO) -> None:
    """`torch.save`, which given a path does not tell that the disk is full, and else not always."""
    try:
        torch.save(content, file)
    except RuntimeError as error:  # of the end of the file, which it writes nonetheless
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def read(path: Path, options: Mapping[str, Any]) -> tuple[Progress, dict[str, Any]]:
    """Progress and states of the run of these options.

    Raises
    ------
    InputError
        If the file is no checkpoint, or that of a run with other options; lists them.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        numbers, saved, states = content["progress"], content["options"], content["states"]
        assert content["version"] == _VERSION
        numbers["file"] = numbers["file"].numpy().tobytes()
        progress = Progress(**numbers)
    except Exception:  # what torch raises here depends on which byte is wrong
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
