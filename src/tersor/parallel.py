"""Work on pieces of data in threads, results in order, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_AHEAD = 2
"""Items that each thread may be ahead of who takes the results."""

_MOST_BYTES = 1 << 24
"""Bytes of items that wait or are worked on, beside the largest of them."""


def ordered(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    nbytes: Callable[[_Item], int] = lambda item: 0,
) -> Iterator[_Result]:
    """The function of each item, in their order, computed in as many threads as torch has.

    Items are taken as the results are: never more than a few for each thread are held. The function
    should spend its time where Python's lock is released, as zlib and numpy do.

    Parameters
    ----------
    nbytes
        Memory that an item takes; where it adds up to much, fewer items are held.
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
