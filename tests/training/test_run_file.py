# SPDX-License-Identifier: Apache-2.0
"""The file from which a stopped run goes on."""

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

from tersor.training import checkpoint

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_as_such():
    """torch.save alone would raise a RuntimeError about the end of the file."""
    with pytest.raises(OSError) as caught, FULL.open("wb", buffering=0) as file:
        checkpoint._save({"weights": torch.zeros(1 << 20)}, file)
    assert caught.value.errno == errno.ENOSPC


class Tagged(torch.Tensor):
    """A subclass, which may keep its elements elsewhere."""


def test_the_identity_of_a_model_is_that_of_its_plain_tensors():
    def model(bias=0.0, **buffers):
        layer = nn.Linear(3, 2)
        for parameter in layer.parameters():
            nn.init.constant_(parameter, bias)
        for name, value in buffers.items():
            layer.register_buffer(name, value)
        return layer

    usual = checkpoint.identity(model())
    assert usual.startswith("Linear, 8 numbers, checksum ")
    assert usual == checkpoint.identity(model())
    assert checkpoint.identity(model(1.0)) != usual
    sparse = torch.eye(2).to_sparse()
    for value in (sparse, torch.zeros(2, device="meta"), torch.zeros(2).as_subclass(Tagged)):
        found = checkpoint.identity(model(extra=value))
        assert found.startswith("Linear, 8 numbers") and found != usual  # its name counts
