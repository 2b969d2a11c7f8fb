# SPDX-License-Identifier: Apache-2.0
"""Read the tensors of a trained model one at a time, without ever unpickling objects."""

from tersor.storage.checkpoint.opening import open_checkpoint
from tersor.storage.checkpoint.source import Source, shared

__all__ = ["Source", "open_checkpoint", "shared"]
