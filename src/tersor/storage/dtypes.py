"""Data types that a file can hold, by the codes and names that stand for them."""

from __future__ import annotations

import torch

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
"""Names as safetensors writes them. The position is the code in the file: append, never reorder."""

CODES = list(NAMES)


def code(dtype: torch.dtype, tensor: str) -> int:
    """Code of a data type.

    Raises
    ------
    InputError
        If the file cannot hold it; names the tensor.
    """
    if dtype not in NAMES:
        raise InputError(
            f"tensor {tensor!r} has the data type {dtype}, which cannot be stored; convert it to "
            f"one of {', '.join(NAMES.values())} first"
        )
    return CODES.index(dtype)
