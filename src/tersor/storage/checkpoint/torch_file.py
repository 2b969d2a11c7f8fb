# SPDX-License-Identifier: Apache-2.0
"""Read files that ``torch.save`` wrote, without running code from them."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import Counter
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
"""Most bytes, over all tensors, by which tensors may exceed the memory that they are views of."""


_ARCHIVE = b"PK\3\4"
"""First bytes of a zip archive."""


def read(path: Path, key: str | None = None) -> Content:
    """Return the tensors of a state dict, mapped from the file if possible.

    Parameters
    ----------
    path
        The file.
    key
        Key of the state dict, if there are several. By default the only one with weights is taken.

    Raises
    ------
    InputError
        If it is not such a file or is damaged, holds no state dict or several, or holds a whole
        model.
    """
    try:
        content, sizes = _load(path)
        tensors, ignored = nesting.chosen(content, key)
        if sizes is not None:
            _check_storages(tensors.values(), sizes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    _check_repetitions(path, tensors)
    stored = {
        name: Stored(tuple(t.shape), t.dtype, t.nbytes) if is_dense(t) else Stored((), None, 0)
        for name, t in tensors.items()
    }
    return Content(stored, tensors.__getitem__, (path,), shared(tensors), ignored)


def _load(path: Path) -> tuple[Any, Iterable[int] | None]:
    """Return the content of a file, and the sizes of an archive's entries.

    Stand-ins take the place of objects of classes that may be unsafe.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(len(_ARCHIVE)) == _ARCHIVE:
                raise InputError("it is damaged: the archive ends early; get the file again")
        # The format before torch 1.6, which can be neither mapped nor checked first.
        return _unpickle_weights(path, (), mapped=False), None
    sizes, mapped = zipped.check(path)
    if any(name.endswith("/constants.pkl") for name in sizes):
        raise InputError(
            "this is a TorchScript archive, whose code is never loaded. Where you trust the file, "
            f"save the weights: torch.save(torch.jit.load({path.name!r}).state_dict(), "
            "'weights.pt')"
        )
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # its type depends on the wrong byte; loading gives a better message
        unknown = []
    return _unpickle_weights(path, unknown, mapped), sizes.values()


def _check_storages(tensors: Iterable[Tensor], sizes: Iterable[int]) -> None:
    """Refuse memory that no entry of the archive fills, which older versions of PyTorch do not.

    Memory of a size that some other entry has is not found.
    """
    storages = {
        storage.data_ptr(): storage.nbytes()
        for tensor in tensors
        if is_dense(tensor) and (storage := tensor.untyped_storage()).nbytes()
    }
    if extra := Counter(storages.values()) - Counter(sizes):
        size = format_size(max(extra))
        raise InputError(f"it is damaged: it claims {size} that are not in it; get the file again")


def _unpickle_weights(path: Path, unknown: Iterable[str], mapped: bool) -> Any:
    try:
        with warnings.catch_warnings(), standing_in(unknown):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # the type of the error depends on which byte is wrong
        raise InputError(
            "it is damaged, no PyTorch file, or holds more than tensors, which PyTorch cannot "
            f"leave out ({_reason(error)}). {nesting.RESAVE}"
        ) from None


def _reason(error: Exception) -> str:
    """Return PyTorch's error message without its advice to trust the file."""
    text = str(error.__context__ or error)  # the error before PyTorch added its advice
    return re.split(r"\. Please|\n", text.strip(), maxsplit=1)[0][:300]


def _check_repetitions(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that repeat a few elements so often that they would fill the memory."""
    dense = [t for t in tensors.values() if is_dense(t)]
    more = sum(max(0, t.nbytes - t.untyped_storage().nbytes()) for t in dense)
    if more > _MOST_REPEATED:
        raise InputError(
            f"{path} claims {format_size(more)} of tensors that it does not hold, as views of the "
            "same elements; save them as tensors of their own (.contiguous())"
        )
