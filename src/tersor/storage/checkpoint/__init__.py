# SPDX-License-Identifier: Apache-2.0
"""Read the tensors of a trained model one at a time, without ever unpickling objects."""

from tersor.storage.checkpoint.opening import open_checkpoint
from tersor.storage.checkpoint.source import Source, shared
from tersor.storage.checkpoint.stored_tensor import StoredTensor

__all__ = ["Source", "StoredTensor", "open_checkpoint", "shared"]
