"""Read what ``torch.save`` wrote, as far as that is possible without running code from the file."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.storage.checkpoint import nesting, zipped
from tersor.storage.checkpoint.inert import standing_in
from tersor.storage.checkpoint.source import Content, Stored, shared
from tersor.storage.dtypes import is_dense
from tersor.units import format_size

_MOST_REPEATED = 1 << 28
"""Bytes that tensors may have, all together, beyond those of the memory that they are views of."""


_ARCHIVE = b"PK\3\4"
"""What a zip archive starts with."""


def read(path: Path, key: str | None = None) -> Content:
    """The tensors of a state dict; mapped into memory where the file allows it.

    Parameters
    ----------
    path
        The file.
    key
        Of the state dict, where there are several.

    Raises
    ------
    InputError
        If it is no such file or damaged, holds no or several state dicts, or a whole model.
    """
    try:
        tensors, ignored = nesting.chosen(_load(path), key)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    _check_repetitions(path, tensors)
    stored = {
        name: Stored(tuple(t.shape), t.dtype, t.nbytes) if is_dense(t) else Stored((), None, 0)
        for name, t in tensors.items()
    }
    return Content(stored, tensors.__getitem__, (path,), shared(tensors), ignored)


def _load(path: Path) -> Any:
    """What is in a file, with stand-ins for objects of classes that are not known to be safe."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(len(_ARCHIVE)) == _ARCHIVE:
                raise InputError("it is damaged: the archive ends early; get the file again")
        # As before torch 1.6: neither to be mapped nor looked into.
        return _unpickle_weights(path, (), mapped=False)
    names, mapped = zipped.check(path)
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
            "this is a TorchScript archive, whose code is never loaded. Where you trust the file, "
            f"save the weights: torch.save(torch.jit.load({path.name!r}).state_dict(), "
            "'weights.pt')"
        )
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # what torch raises depends on which byte is wrong; loading tells better
        unknown = []
    return _unpickle_weights(path, unknown, mapped)


def _unpickle_weights(path: Path, unknown: Iterable[str], mapped: bool) -> Any:
    try:
        with warnings.catch_warnings(), standing_in(unknown):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # what torch raises here depends on which byte is wrong
        raise InputError(
            "it is damaged, no PyTorch file, or holds more than tensors, which PyTorch cannot "
            f"leave out ({_reason(error)}). {nesting.RESAVE}"
        ) from None


def _reason(error: Exception) -> str:
    """What PyTorch says, without its advice to trust the file."""
    text = str(error.__context__ or error)  # what it was before advice was put around it
    return re.split(r"\. Please|\n", text.strip(), maxsplit=1)[0][:300]


def _check_repetitions(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are a few elements again and again, and would fill the memory."""
    dense = [t for t in tensors.values() if is_dense(t)]
    more = sum(max(0, t.nbytes - t.untyped_storage().nbytes()) for t in dense)
    if more > _MOST_REPEATED:
        raise InputError(
            f"{path} claims {format_size(more)} of tensors that it does not hold, as views of the "
            "same elements; save them as tensors of their own (.contiguous())"
        )
