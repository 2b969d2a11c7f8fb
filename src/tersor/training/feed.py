"""The batches of an epoch, the same ones however often a run is stopped and goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from tersor.errors import InputError, explained
from tersor.training.batches import NEEDED, Batch, check_loader

if TYPE_CHECKING:
    from accelerate import Accelerator


class Feed:
    """Batches of a loader, each process getting its part of each.

    Random numbers depend on the number of the batch alone: what is random in the loader, and in the
    model, is the same when an epoch is gone through again.

    Parameters
    ----------
    loader
        Given by the user. A DataLoader is left to `accelerate`, so that each process loads only its
        part; of other iterables every process takes all batches and keeps its part.
    seed
        Of all random numbers.
    accelerator
        Knows the processes and the device.
    read
        Makes a batch of what the loader gives.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        seed: int,
        accelerator: Accelerator,
        read: Callable[[Any], Batch],
    ) -> None:
        self.read = read
        self.batches, self.seed = check_loader(loader), seed
        self.device = accelerator.device
        self.process, self.processes = accelerator.process_index, accelerator.num_processes
        self.loader, self.part = loader, (self.process, self.processes)
        if isinstance(loader, DataLoader):
            size = loader.batch_size or 0
            if size % self.processes:
                raise InputError(
                    f"batches of {size} cannot be shared by {self.processes} processes; give a "
                    "batch size that is a multiple of their number"
                )
            self.loader, self.part = accelerator.prepare_data_loader(loader), (0, 1)

    def epoch(self, number: int, done: int) -> Iterator[Batch]:
        """The batches of an epoch without the first ones, which are gone through all the same."""
        count = 0
        for count, item in enumerate(self._items(number), start=1):
            if count > done:
                yield self.read(item).part(*self.part, self.device)
        if count < self.batches:
            raise InputError(
                f"the loader gave {count} batches in epoch {number + 1}, its length is "
                f"{self.batches}; it has to give as many each time"
            )

    def _items(self, epoch: int) -> Iterator[Any]:
        first = epoch * (self.batches + 1)
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)
        with explained("the loader", NEEDED):
            self._draw(first)
            iterator = iter(self.loader)
            for number in range(1, self.batches + 1):
                self._draw(first + number)
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                yield item

    def _draw(self, number: int) -> None:
        """Begin anew with random numbers that belong to a batch, and to this process."""
        value = ((self.seed * 1_000_003 + number) * self.processes + self.process) % 2**32
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)
