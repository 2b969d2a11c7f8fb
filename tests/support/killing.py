# SPDX-License-Identifier: Apache-2.0
"""Kill commands at random moments, again and again, and look at what they leave and end with.

Everything is imported once; each command runs in a fork, so that a thousand kills take minutes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import accelerate  # noqa: F401  (what commands import is imported before they are forked)
import numpy as np
import torch
from safetensors.torch import save_file
from trainable import compressed, data, dense

import tersor
import tersor.cli.training
import tersor.compression.curve
import tersor.report.curve_picture
from tersor.cli import app

NET = "from trainable import Net as make, loader as batches\n"


@dataclass
class Findings:
    """What killed processes left of one command.

    Parameters
    ----------
    command
        What was killed.
    kills
        Processes that were killed, each before it was done.
    at_times, at_bytes, at_calls
        How many by a signal at a random time, while a file grew beyond a random size, and when a
        file was about to be opened, renamed or removed.
    resumed
        Runs that went on from what was left, to their end.
    torn
        Files under a final name, after a kill, that were neither the earlier nor the new one.
    different
        Files that a resumed run ended with that are not those of a run without kills.
    strays
        Temporary files that were there after a kill.
    left
        Files that were still there after the resumed run, beside the output.
    """

    command: str
    kills: int = 0
    at_times: int = 0
    at_bytes: int = 0
    at_calls: int = 0
    resumed: int = 0
    torn: int = 0
    different: int = 0
    strays: int = 0
    left: int = 0


COMMANDS = {
    "compress": ("compress", "model.safetensors", "-o", "out.tersor", "--ratio", "8"),
    "curve": ("curve", "model.safetensors", "-o", "out.json", "--points", "4"),
    "finetune": (
        *("finetune", "trained.tersor", "-o", "out.tersor", "--model", "killed_net:make"),
        *("--data", "train.npz", "--epochs", "2", "--batch-size", "64"),
    ),
    "decompress": ("decompress", "whole.tersor", "-o", "out.safetensors"),
    "save": ("save",),
}


def prepare(folder: Path) -> None:
    """Write what the commands read; the current folder is to be this one."""
    draw = torch.Generator().manual_seed(3)
    state = {f"{i}.weight": torch.randn(32, 32 + i, generator=draw) for i in range(3)}
    save_file(state, folder / "model.safetensors")
    teacher = dense()
    tersor.save(compressed(teacher, 15), folder / "trained.tersor")
    tersor.save(torch.nn.Linear(200, 200), folder / "whole.tersor", lossless=True)
    images, labels = data(64)
    np.savez(folder / "train.npz", x=((images + 4) * 25).byte().numpy(), y=labels.numpy())
    (folder / "killed_net.py").write_text(NET)


def act(name: str) -> None:
    """Run a command in this process."""
    if name == "save":
        torch.manual_seed(0)
        tersor.save(torch.nn.Linear(200, 200), Path("out.tersor"), lossless=True)
    else:
        app(list(COMMANDS[name]), standalone_mode=False)


def warm(folder: Path) -> None:
    """Run all commands in this process, for what is imported and made at first use."""
    before = _digests(folder)
    with redirect_stdout(io.StringIO()):
        for name in COMMANDS:
            act(name)
    for path in _digests(folder).keys() - before.keys():
        (folder / path).unlink()


def kill_and_resume(folder: Path, name: str, kills: int, seed: int) -> Findings:
    """Kill a command so many times; each run goes on from what the one before it has left."""
    found, draw, inputs = Findings(name), random.Random(f"{name} {seed}"), _digests(folder)
    start = time.perf_counter()
    assert _run(name) == 0, f"{name} fails without being killed"
    seconds, clean = time.perf_counter() - start, _digests(folder)
    (output,) = clean.keys() - inputs.keys()
    (folder / output).unlink()
    while found.kills < kills:
        if draw.random() < 0.5:
            (folder / output).write_text("earlier")
        whole = {clean[output], _digests(folder).get(output)}
        while (way := _kill(name, draw, seconds)) is not None:
            found.kills += 1
            setattr(found, way, getattr(found, way) + 1)
            now = _digests(folder)
            found.strays += sum(path.endswith(".tmp") for path in now)
            found.torn += now.get(output) not in {None, *whole}
        now = _digests(folder)
        found.resumed += 1
        found.different += now.get(output) != clean[output]
        found.left += len(now.keys() - clean.keys())
        for path in now.keys() - inputs.keys():
            (folder / path).unlink()
    return found


def _kill(name: str, draw: random.Random, seconds: float) -> str | None:
    """Run the command, killed in a random way, which is returned; None if it was done before."""
    way, code = draw.choice(("at_times", "at_bytes", "at_calls")), 0
    if way == "at_times":
        code = _run(name, seconds=draw.uniform(0, 1.3 * seconds))
    if way == "at_bytes":
        code = _run(name, partial(_die_at_byte, int(10 ** draw.uniform(0, 6.5))))
    if way == "at_calls":
        code = _run(name, partial(_die_at_call, draw.randrange(1, 30)))
    assert code in (0, -signal.SIGKILL, -signal.SIGXFSZ), f"{name} ended with {code}"
    return way if code else None


def _run(name: str, begin: Callable[[], None] = int, seconds: float | None = None) -> int:
    """Run a command in a process of its own, killed after so many seconds; its exit code."""
    process = os.fork()
    if process == 0:
        try:
            begin()
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                act(name)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # whatever went wrong, nothing of the parent may run here
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _die_at_byte(size: int) -> None:
    """End at a write beyond so many bytes of a file; what is before them is written."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


_CALLS = ("open", "os.rename", "os.remove", "os.truncate", "fcntl.flock")


def _die_at_call(count: int) -> None:
    """End just before the call of that number that changes the folder or opens an output."""
    left = count

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _CALLS and (event != "open" or "out." in str(arguments[0])):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _digests(folder: Path) -> dict[str, bytes]:
    """Digests of all files, by name."""
    files = (path for path in folder.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in files}


def kill_all(kills: int, seed: int) -> list[Findings]:
    """Kill each of the commands, so many times in all, in a folder that is removed afterwards."""
    torch.set_num_threads(1)  # forks do not have the threads of their parent
    home, found = Path.cwd(), []
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            prepare(Path(name))
            warm(Path(name))
            for command in COMMANDS:
                found.append(kill_and_resume(Path(name), command, kills // len(COMMANDS), seed))
        finally:
            os.chdir(home)
    return found


if __name__ == "__main__":
    print(json.dumps([asdict(row) for row in kill_all(int(sys.argv[1]), int(sys.argv[2]))]))
