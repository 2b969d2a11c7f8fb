# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests."""

import os

# Threads that wait shall not spin: this machine may have other work. Before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings

# Kernels of GPUs are interpreted where there is none. Before triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("tersor", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("tersor")


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    torch.set_num_threads(2)
