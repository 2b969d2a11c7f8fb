# SPDX-License-Identifier: Apache-2.0
"""What a run takes, measured in turn with others.

Threads that have run spin for a while, 10 ms those of GNU's OpenMP, and take processors from
whatever comes next; threads that sleep take up to 8 ms to wake here. So with several threads each
turn lets the others' fall asleep and its own wake up, as they are while a model runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

REST, AWAKE = 0.015, 0.02
"""Seconds without runs, and then of runs that are not timed, before those that are."""

TIMED = 5
"""Runs whose median counts."""


def seconds(run: Callable[[], object], threads: int) -> float:
    """What a run takes that uses so many threads."""
    if threads == 1:
        return _timed(run)
    time.sleep(REST)
    end = time.perf_counter() + AWAKE
    while time.perf_counter() < end:
        run()
    return statistics.median(_timed(run) for _ in range(TIMED))


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
