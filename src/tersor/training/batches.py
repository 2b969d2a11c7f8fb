# SPDX-License-Identifier: Apache-2.0
"""Convert the items of a data loader to batches: arguments of the model, and targets."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tersor.calibration import samples
from tersor.errors import InputError, explained

NEEDED = "batches (inputs, ..., targets), or mappings with labels, are needed"


class Batch(NamedTuple):
    """A batch: the arguments of the model, and the targets.

    Parameters
    ----------
    args, kwargs
        Positional and keyword arguments of the model.
    targets
        Values that the loss compares the outputs with. None if the model learns only from a
        teacher.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any

    @staticmethod
    def of(item: Any, model: nn.Module, *, labelled: bool = True) -> Batch:
        """Return the batch in an item of a loader.

        Parameters
        ----------
        item
            Arguments of the model (see `tersor.calibration.samples`) and targets. The targets are
            the last one of several items, or the item with the name ``labels``.
        model
            Model that takes the arguments.
        labelled
            Whether targets are required. If they are not, all of several items may be arguments:
            they are if the model requires as many.

        Returns
        -------
        Batch
            The arguments and the targets, on the devices where they were. The targets are None if
            there are none.

        Raises
        ------
        InputError
            If targets are required and missing, or the model cannot take the arguments.
        """
        named = samples.named(item, model)
        if named is not None:
            return Batch(*samples.arguments(model, named), named.get("labels"))
        several = samples.is_several(item) and len(item) > 1
        if several and (labelled or len(item) > samples.fewest(model)):
            if not labelled:
                _check_targets(item, model)
            return Batch(*samples.arguments(model, item[:-1], labelled=False), item[-1])
        if labelled:
            raise InputError(
                f"a batch of the loader is a {type(item).__name__}"
                + (f" of {len(item)}" if samples.is_several(item) else "")
                + f"; {NEEDED}"
            )
        return Batch(*samples.arguments(model, item, labelled=False), None)

    def part(self, index: int, count: int, device: torch.device) -> Batch:
        """Return one of ``count`` equal parts on a device, with images in the channels-last layout.

        Parameters
        ----------
        index, count
            Number of the part, from 0, and number of parts.
        device
            Device of the result.

        Returns
        -------
        Batch
            The samples of this part. Tensors of four axes are images.

        Raises
        ------
        InputError
            If the batch has values without an axis for the samples, or ``count`` does not divide
            the number of samples.
        """
        first = next(samples.tensors_in(self), None)
        length = len(first) if first is not None and first.ndim else 1

        def take(value: Any) -> Any:
            if count > 1:
                value = _share(value, length, index, count)
            value = value.to(device)
            if not isinstance(value, Tensor):
                return value
            layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
            return value.contiguous(memory_format=layout)

        return cast(Batch, samples.mapped(take, self))


def _check_targets(item: Sequence[Any], model: nn.Module) -> None:
    """Warn if the last item, which is taken for targets, could be an argument of the model."""
    last = item[-1]
    numbers = isinstance(last, Tensor) and not (last.is_floating_point() or last.is_complex())
    if samples.could_take(model, len(item)) and not numbers:
        warnings.warn(
            "the last item of the batches is taken for targets, which a teacher makes needless; if "
            "it is an argument of the model, give dicts of arguments",
            stacklevel=2,
        )


def _share(value: Any, length: int, index: int, count: int) -> Any:
    """Return one of ``count`` equal parts of a value in a batch of ``length`` samples."""
    if isinstance(value, Tensor) and not value.ndim:
        return value
    if not isinstance(value, Tensor) or len(value) != length:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"a batch of {length} samples holds {what} too, which {count} processes cannot share; "
            "give tensors whose first axis is that of the samples"
        )
    size, left = divmod(length, count)
    if left:
        raise InputError(
            f"a batch of {length} cannot be shared by {count} processes; give batches of a "
            "multiple of that, and leave out the last one if it is smaller (drop_last=True)"
        )
    return value[index * size : (index + 1) * size]


def batches_per_epoch(loader: Iterable[Any]) -> int:
    """Return the number of batches of an epoch.

    Raises
    ------
    InputError
        If the loader has no length, is empty, or can be iterated over only once.
    """
    if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
        raise InputError(
            f"the loader is a {type(loader).__name__}, which cannot be gone through once for each "
            "epoch; give a list of batches or a DataLoader"
        )
    samples.check_loader(loader)
    if not isinstance(loader, Sized):
        raise InputError(
            f"the loader is a {type(loader).__name__} without a length; give a list of batches or "
            "a DataLoader, since the schedule depends on their number"
        )
    with explained("the loader", NEEDED):
        count = len(loader)
    if not count:
        raise InputError(f"the loader is empty; {NEEDED}")
    return count
