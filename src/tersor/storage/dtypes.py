# SPDX-License-Identifier: Apache-2.0
"""List the data types that a file can hold, with their codes and names."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from tersor.errors import InputError

NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.complex64: "C64",
}
"""Names of the types as safetensors writes them. The position is the code in the file: append new
types, never reorder."""

CODES = list(NAMES)


MAX_AXES = 64
"""Largest number of axes of a tensor. PyTorch computes with fewer."""


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor is an array in memory: not sparse, nested, meta or lazy."""
    return not (
        is_lazy(tensor) or tensor.is_meta or tensor.is_nested or tensor.layout is not torch.strided
    )


def check(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that the file cannot hold.

    Raises
    ------
    InputError
        If the tensor is not dense, has too many axes or has an unknown data type; the message names
        it.
    """
    if not is_dense(tensor):
        raise InputError(
            f"tensor {name!r} is sparse, nested or without values; make it an ordinary tensor first"
        )
    if tensor.ndim > MAX_AXES:
        raise InputError(
            f"tensor {name!r} has {tensor.ndim} axes; at most {MAX_AXES} can be stored"
        )
    if tensor.dtype not in NAMES:
        raise InputError(
            f"tensor {name!r} has the data type {tensor.dtype}, which cannot be stored; convert it "
            f"to one of {', '.join(NAMES.values())} first"
        )
