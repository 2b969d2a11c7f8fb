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


def ordered(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """The function of each item, in their order, computed in as many threads as torch has.

    Items are taken as the results are: never more than a few for each thread are held. The function
    should spend its time where Python's lock is released, as zlib and numpy do.
    """
    threads = torch.get_num_threads()
    pending: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > _AHEAD * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
