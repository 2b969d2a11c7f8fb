# SPDX-License-Identifier: Apache-2.0
"""Provide the batches of an epoch, the same ones however often a run is stopped and continued."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from tersor.errors import InputError, explained
from tersor.training.batches import NEEDED, Batch, batches_per_epoch

if TYPE_CHECKING:
    from accelerate import Accelerator


class BatchSource:
    """Batches of a loader, of which each process gets its part.

    The random numbers depend on the number of the batch alone. The random choices of the loader and
    of the model are therefore the same when an epoch is repeated.

    Parameters
    ----------
    loader
        Loader of the user. `accelerate` prepares a DataLoader, so that each process loads only its
        part. From other iterables every process takes all batches and keeps its part.
    seed
        Seed of all random numbers.
    accelerator
        Accelerator, which knows the processes and the device.
    read
        Function that returns the batch in an item of the loader.

    Raises
    ------
    InputError
        If the loader cannot be iterated over repeatedly, or its batches cannot be divided among the
        processes.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        seed: int,
        accelerator: Accelerator,
        read: Callable[[Any], Batch],
    ) -> None:
        self.read = read
        self.batches, self.seed = batches_per_epoch(loader), seed
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
        """Yield the batches of an epoch, on the device of this process.

        Parameters
        ----------
        number
            Number of the epoch, from 0.
        done
            Number of batches at the beginning that are left out. They are loaded all the same.

        Yields
        ------
        Batch
            The part of this process.

        Raises
        ------
        InputError
            If the loader gives fewer batches than its length.
        """
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
        """Seed all random number generators for a batch and this process."""
        value = ((self.seed * 1_000_003 + number) * self.processes + self.process) % 2**32
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)
