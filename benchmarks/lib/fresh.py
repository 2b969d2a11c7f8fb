# SPDX-License-Identifier: Apache-2.0
"""Run a benchmark's module in a fresh process."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.lib.places import ROOT


def output_of(module: str, *arguments: object) -> str:
    """Return what ``python -m MODULE ARGUMENTS`` prints. If it fails, its errors are shown.

    Parameters
    ----------
    module
        Name of the module, for example ``__spec__.name`` of the caller's.
    arguments
        Arguments; paths must be absolute, as the process runs in the root of the repository.

    Raises
    ------
    RuntimeError
        If the process fails: the last line of its errors.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise RuntimeError(said[-1])
    return done.stdout
