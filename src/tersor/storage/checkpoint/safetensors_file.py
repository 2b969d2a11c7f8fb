# SPDX-License-Identifier: Apache-2.0
"""Read ``.safetensors`` files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tersor.errors import InputError
from tersor.storage import dtypes
from tersor.storage.checkpoint.source import Content, Stored
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
        stored = _stored(path, names)
    except SafetensorError as error:
        raise InputError(f"{path} is not a valid safetensors file: {error}") from None

    if names == [KEY] and stored[KEY].dtype == torch.uint8:
        raise InputError(
            f"{path} is compressed by tersor already; decompress it first (tersor decompress)"
        )

    def load(name: str) -> Tensor:
        # Opened again each time: a file that stays mapped would in the end be in memory as a whole.
        try:
            with safe_open(path, framework="pt") as file:
                return cast(Tensor, file.get_tensor(name))
        except (SafetensorError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: tensor {name!r} cannot be read: {error}") from None

    return Content(stored, load, (path,))


def _stored(path: Path, names: list[str]) -> dict[str, Stored]:
    """Return shapes, types and sizes from the header, which the library has checked."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found = {}
    for name in names:
        start, end = header[name]["data_offsets"]
        found[name] = Stored(
            tuple(header[name]["shape"]), _DTYPES.get(header[name]["dtype"]), end - start
        )
    return found
