"""Read a trained model's tensors, one at a time, from the files that hold them. Never unpickles."""

from tersor.storage.checkpoint.opening import open_checkpoint
from tersor.storage.checkpoint.source import Source, shared

__all__ = ["Source", "open_checkpoint", "shared"]
