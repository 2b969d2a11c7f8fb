"""Batches: what the model is called with, what its outputs are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tersor.errors import InputError, explained

NEEDED = "batches (inputs, ..., targets), or mappings with labels, are needed"


class Batch(NamedTuple):
    """Arguments of the model, and the targets; None if the model is only to follow a teacher."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any

    @staticmethod
    def of(item: Any) -> Batch:
        """A batch as loaders give it."""
        if isinstance(item, Mapping):
            kwargs = {name: value for name, value in item.items() if name != "labels"}
            return Batch((), kwargs, item.get("labels"))
        if isinstance(item, tuple | list) and len(item) > 1:
            return Batch(tuple(item[:-1]), {}, item[-1])
        raise InputError(
            f"a batch of the loader is a {type(item).__name__}"
            + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
            + f"; {NEEDED}"
        )

    def part(self, index: int, count: int, device: torch.device) -> Batch:
        """One of ``count`` equal parts, on a device, images with their channels last."""

        def take(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            size, left = divmod(len(value), count)
            if left:
                raise InputError(
                    f"a batch of {len(value)} cannot be shared by {count} processes; give batches "
                    "of a multiple of that, and leave out the last one if it is smaller "
                    "(drop_last=True)"
                )
            value = value[index * size : (index + 1) * size].to(device)
            layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
            return value.contiguous(memory_format=layout)

        return Batch(
            tuple(map(take, self.args)),
            {name: take(value) for name, value in self.kwargs.items()},
            take(self.targets),
        )


def check_loader(loader: Iterable[Any]) -> int:
    """Batches of an epoch; refuses what cannot be gone through again and again."""
    if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
        raise InputError(
            f"the loader is a {type(loader).__name__}, which cannot be gone through once for each "
            "epoch; give a list of batches or a DataLoader"
        )
    if isinstance(loader, Tensor) or not isinstance(loader, Sized):
        raise InputError(
            f"the loader is a {type(loader).__name__} without a length; give a list of batches or "
            "a DataLoader, since the schedule depends on their number"
        )
    with explained("the loader", NEEDED):
        count = len(loader)
    if not count:
        raise InputError(f"the loader is empty; {NEEDED}")
    return count


def logits(output: Any) -> Tensor:
    """The tensor that a model gives, alone, first in a tuple, or as ``logits`` of a mapping."""
    for value in (output, getattr(output, "logits", None)):
        if isinstance(value, Tensor):
            return value
    if isinstance(output, tuple | list) and output:
        return logits(output[0])
    raise InputError(
        f"the model returned a {type(output).__name__}; a tensor, or something with a tensor "
        "called logits, is needed"
    )
