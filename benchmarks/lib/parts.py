# SPDX-License-Identifier: Apache-2.0
"""Name the parts of the source that a benchmark measures, as patterns of files and folders."""

from __future__ import annotations

CODER = ("csrc/*.?pp", "src/tersor/coding", "src/tersor/storage")
SOLVER = (
    "csrc/*.?pp",
    "csrc/solver",
    "src/tersor/coding",
    "src/tersor/factorization",
    "src/tersor/factors.py",
    "src/tersor/tiling.py",
)
CALIBRATED = (*SOLVER, "src/tersor/calibration")
MODELS = (
    *CALIBRATED,
    "src/tersor/compression",
    "src/tersor/io.py",
    "src/tersor/nn",
    "src/tersor/storage",
)
TRAINING = (*MODELS, "src/tersor/training")
EXPORT = (*MODELS, "src/tersor/export")
COMMANDS = (*TRAINING, "src/tersor/cli")
DECODERS = (*CODER, "csrc/decoder")
KERNELS = ("csrc/kernels", "src/tersor/kernels", "src/tersor/nn")
INFERENCE = (*MODELS, "csrc/kernels", "src/tersor/inference", "src/tersor/kernels")
