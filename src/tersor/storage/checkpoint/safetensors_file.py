# SPDX-License-Identifier: Apache-2.0
"""Read ``.safetensors`` files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tersor.errors import InputError
from tersor.storage import dtypes
from tersor.storage.checkpoint.source import Content, Stored
from tersor.storage.checkpoint.stored_tensor import StoredTensor
from tersor.storage.model_folder import KEY

_DTYPES = {name: dtype for dtype, name in dtypes.NAMES.items()}


def read(path: Path) -> Content:
    """Return the tensors of a file, of which each is loaded when it is asked for.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InputError
        If it is not a safetensors file, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names: list[str] = list(file.keys())
        stored, starts = _stored(path, names)
    except SafetensorError as error:
        raise InputError(f"{path} is not a valid safetensors file: {error}") from None

    if names == [KEY] and stored[KEY].dtype == torch.uint8:
        raise InputError(
            f"{path} is compressed by tersor already; decompress it first (tersor decompress)"
        )

    def view(name: str) -> StoredTensor:
        kind = stored[name]
        if kind.dtype is None:
            raise InputError(
                f"{path}: tensor {name!r} cannot be read: PyTorch has no such data type, or tersor "
                "cannot store it; convert the tensor first"
            )
        return StoredTensor(path, name, starts[name], kind.shape, kind.dtype)

    def load(name: str) -> Tensor:
        return view(name).load()

    return Content(stored, load, (path,), view=view)


def _stored(path: Path, names: list[str]) -> tuple[dict[str, Stored], dict[str, int]]:
    """Return shapes, types and sizes from the header, which the library has checked; and starts."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    found, starts = {}, {}
    for name in names:
        start, end = header[name]["data_offsets"]
        kind = _DTYPES.get(header[name]["dtype"])
        found[name] = Stored(tuple(header[name]["shape"]), kind, end - start)
        starts[name] = 8 + size + start
    return found, starts
