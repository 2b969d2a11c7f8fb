# SPDX-License-Identifier: Apache-2.0
"""Process items in threads and return the results in order, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_AHEAD = 2
"""Items for each thread that may be in work before the caller takes the next result."""

_MOST_BYTES = 1 << 24
"""Limit for the bytes of all items in work, the largest item not counted."""


def ordered(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    nbytes: Callable[[_Item], int] = lambda item: 0,
) -> Iterator[_Result]:
    """Yield the result of the function for each item, in the order of the items.

    The work runs in as many threads as torch uses. Items are taken only as fast as the caller takes
    results, so that at most a few items for each thread are in memory. The function should spend
    its time in code that releases Python's lock (GIL), such as zlib and numpy.

    Parameters
    ----------
    function
        Function of one item.
    items
        Items to process.
    nbytes
        Function that returns the memory of an item in bytes; by default 0. Fewer items are held
        where they are large.

    Yields
    ------
    _Result
        Result of the function for the next item.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, items)
        return
    pending: deque[tuple[Future[_Result], int]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            size = nbytes(item)
            while len(pending) > _AHEAD * threads or _too_large([size, *(n for _, n in pending)]):
                yield pending.popleft()[0].result()
            pending.append((pool.submit(function, item), size))
        while pending:
            yield pending.popleft()[0].result()


def _too_large(sizes: list[int]) -> bool:
    return sum(sizes) - max(sizes) > _MOST_BYTES
