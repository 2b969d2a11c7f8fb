# SPDX-License-Identifier: Apache-2.0
"""Read and dequantize ``.gguf`` files with the package ``gguf``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.errors import InputError, MissingExtraError
from tersor.storage.checkpoint.source import Content, Stored

_TYPES = {
    "F64": torch.float64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""Data types by the package's names. Tensors of other types, which are quantized, are given as
float32."""


def read(path: Path) -> Content:
    """Return the tensors of a GGUF file, quantized ones dequantized to float32.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Content
        The tensors by their names in the file.

    Raises
    ------
    InputError
        If it is not a GGUF file, or is damaged.
    MissingExtraError
        If the package is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtraError(
            f"{path} needs the package gguf: pip install 'tersor[gguf]'"
        ) from None
    try:
        tensors = {tensor.name: tensor for tensor in _reader(path).tensors}
    except MemoryError:
        raise
    except Exception as error:  # the type of the error depends on which byte is wrong
        raise InputError(f"{path} is not a valid GGUF file, or damaged: {error}") from None

    def load(name: str) -> Tensor:
        tensor = tensors[name]
        dtype = _dtype(tensor)
        try:
            if tensor.tensor_type.name in _TYPES and dtype != torch.bfloat16:
                return torch.from_numpy(np.array(tensor.data))
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise InputError(f"{path}: tensor {name!r} cannot be dequantized: {error}") from None
        return torch.from_numpy(np.array(values, np.float32)).to(dtype)

    stored = {
        name: Stored(tuple(map(int, reversed(t.shape))), _dtype(t), int(t.n_bytes))
        for name, t in tensors.items()
    }
    quantized = [n for n, t in tensors.items() if t.tensor_type.name not in (*_TYPES, "F32")]
    notes = [
        f"quantized tensors ({len(quantized)}, such as {name!r}) are read as the float32 weights "
        "that they mean; the ratio is of the bytes that they take in the file"
        for name in quantized[:1]
    ]
    return Content(stored, load, (path,), notes=tuple(notes))


def _dtype(tensor: Any) -> torch.dtype:
    return _TYPES.get(tensor.tensor_type.name, torch.float32)


def _reader(path: Path) -> Any:
    import gguf

    class Checked(gguf.GGUFReader):  # type: ignore[misc]
        """Raises an error where the file ends, instead of reading as many values as it claims."""

        def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **more: Any) -> Any:
            values = super()._get(offset, dtype, count, *args, **more)
            if len(values) < count:
                raise ValueError("the file ends early")
            return values

    return Checked(path)
