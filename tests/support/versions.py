# SPDX-License-Identifier: Apache-2.0
"""Name what older versions of PyTorch cannot do, for tests that skip it."""

import pytest
import torch

_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

export_is_old = pytest.mark.skipif(
    _VERSION < (2, 7), reason="torch.export of PyTorch 2.6 refuses it, with an error of its own"
)
