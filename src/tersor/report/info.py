# SPDX-License-Identifier: Apache-2.0
"""Describe the environment that tersor runs in."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from tersor.kernels import instructions, missing_on
from tersor.version import __version__

_PACKAGES = ("torch", "numpy", "safetensors")


def environment() -> dict[str, str]:
    """Return versions, kernels, threads and devices, by name."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    accelerators = [f"{torch.cuda.get_device_name(d)} ({_runs_on(d)})" for d in devices]
    return {
        "tersor": __version__,
        "python": platform.python_version(),
        **versions,
        "kernels": f"inference: {instructions() or 'PyTorch'}; solver and coder: native",
        "threads": str(torch.get_num_threads()),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "accelerators": ", ".join(accelerators) or "none",
    }


def _runs_on(device: torch.device) -> str:
    missing = missing_on(device)
    return f"kernels: PyTorch; {missing}" if missing else "kernels: Triton"
