"""Kill processes at random moments of a save, and look at what they leave."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from samples import plain

from tersor.storage import container
from tersor.storage.archive import Archive, Kept
from tersor.storage.verify import verify


@dataclass
class Findings:
    """What killed processes left.

    Parameters
    ----------
    kills
        Processes that were killed.
    during
        Those that were still saving.
    strays
        Temporary files that were there after a kill.
    broken
        Files under the final name that were neither the old nor the new one.
    left
        Temporary files that were still there after the next save.
    """

    kills: int = 0
    during: int = 0
    strays: int = 0
    broken: int = 0
    left: int = 0


def archive(seed: int, elements: int) -> Archive:
    values = torch.randn(elements, generator=torch.Generator().manual_seed(seed))
    return Archive({"noise": plain(values, Kept.VECTOR)}, 4 * elements)


def kill_while_saving(folder: Path, kills: int, seed: int, elements: int = 1 << 19) -> Findings:
    """Save a new file over an old one in processes that are killed, each at a random moment."""
    path, draw, found = folder / "model.tersor", random.Random(seed), Findings()
    old, new = archive(0, elements), archive(1, elements)
    start = time.perf_counter()
    container.write(path, new)
    seconds, whole = time.perf_counter() - start, {path.read_bytes()}
    for _ in range(kills):
        container.write(path, old)
        found.left += len(list(folder.iterdir())) - 1
        whole.add(path.read_bytes())
        found.kills += 1
        found.during += _kill(path, new, draw.uniform(0, 1.3 * seconds))
        found.strays += len(list(folder.iterdir())) - 1
        found.broken += bool(verify(path.read_bytes()).problems)
        found.broken += path.read_bytes() not in whole
    container.write(path, old)
    found.left += len(list(folder.iterdir())) - 1
    return found


def _kill(path: Path, new: Archive, delay: float) -> bool:
    """Save in a process of its own and kill it after so many seconds; whether it was not done."""
    ready, told = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.write(told, b"1")
            container.write(path, new)
            os._exit(0)
        finally:
            os._exit(1)  # whatever went wrong, nothing of the parent may run here
    os.read(ready, 1)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    os.close(ready)
    os.close(told)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, -signal.SIGKILL), "the save failed"
    return code != 0
