# SPDX-License-Identifier: Apache-2.0
"""Load dense tensors of a source into a model."""

from __future__ import annotations

from torch import Tensor, nn

from tersor.errors import InputError
from tersor.storage.checkpoint import Source, shared
from tersor.text import some


def load_weights(model: nn.Module, source: Source) -> None:
    """Load a checkpoint into a model, in place.

    The checkpoint may have more tensors than the model. It may lack integer tensors, which are
    counters and tables of positions that differ between versions of a model; the initial values of
    the model are then used.

    Parameters
    ----------
    model
        Dense model.
    source
        The checkpoint.

    Raises
    ------
    InputError
        If shapes differ, or a floating-point tensor of the model is not in the checkpoint under any
        of its names.
    """
    try:
        found = model.load_state_dict({n: source.load(n) for n in source.names}, strict=False)
    except RuntimeError as error:  # its message lists the shapes, over several lines
        raise InputError(f"the checkpoint does not fit: {' '.join(str(error).split())}") from None
    tied = shared(tensors_of(model))
    present = {tied.get(name, name) for name in source.names}
    real = {name for name, tensor in tensors_of(model).items() if tensor.is_floating_point()}
    missing = [n for n in found.missing_keys if n in real and tied.get(n, n) not in present]
    if missing:
        raise InputError(
            f"the checkpoint does not fit a {type(model).__name__}: it lacks {some(missing)}, and "
            f"has {some(found.unexpected_keys) or 'no more'} that the model lacks; give the "
            "architecture that was saved"
        )


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model's ``state_dict``, which may also hold other objects."""
    return {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
