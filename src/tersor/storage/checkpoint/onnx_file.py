# SPDX-License-Identifier: Apache-2.0
"""Read the initializers and constants of ``.onnx`` files with the package ``onnx``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.errors import InputError, MissingExtraError
from tersor.storage.checkpoint.source import Content, Stored

_BITS = {  # types that numpy itself does not have
    "bfloat16": (np.uint16, torch.bfloat16),
    "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
    "float8_e5m2": (np.uint8, torch.float8_e5m2),
}


def read(path: Path) -> Content:
    """Return the initializers of a graph by their names, and its constants by their outputs' names.

    Graphs inside nodes, such as the branches of a condition, are not searched.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InputError
        If it is not an ONNX file or is damaged, or its tensors are in a file in another folder.
    MissingExtraError
        If the package is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError(
            f"{path} needs the package onnx: pip install 'tersor[onnx]'"
        ) from None
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except MemoryError:
        raise
    except Exception as error:  # the class is protobuf's and differs between its versions
        raise InputError(f"{path} is not a valid ONNX file, or damaged: {error}") from None
    named = [(tensor.name, tensor) for tensor in graph.initializer] + list(_constants(graph))
    tensors = dict(named)
    if len(tensors) < len(named):
        raise InputError(f"{path} has two initializers or constants of one name")
    if not tensors:
        raise InputError(
            f"{path} has no initializers or constants in its outermost graph; weights elsewhere "
            "are not read. Give the checkpoint that the file was exported from"
        )
    outside = {file for tensor in tensors.values() for file in _files(tensor)}
    for name in sorted(outside):
        if Path(name).name != name or not (path.parent / name).is_file():
            raise InputError(
                f"{path} has tensors in {name!r}; that file must be there, in the same folder"
            )

    def load(name: str) -> Tensor:
        try:
            return _tensor(onnx.numpy_helper.to_array(tensors[name], str(path.parent)))
        except MemoryError:
            raise
        except Exception as error:  # the type of the error depends on which byte is wrong
            raise InputError(f"{path}: initializer {name!r} cannot be read: {error}") from None

    stored = {name: _stored(tensor) for name, tensor in tensors.items()}
    files = (path, *(path.parent / name for name in sorted(outside)))
    sparse = tuple(tensor.values.name for tensor in graph.sparse_initializer)
    return Content(stored, load, files, ignored=sparse)


def _constants(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and tensors of constant nodes, in which some exporters store all weights."""
    for node in graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def _files(tensor: Any) -> list[str]:
    if tensor.data_location != tensor.EXTERNAL:
        return []
    return [entry.value for entry in tensor.external_data if entry.key == "location"]


def _stored(tensor: Any) -> Stored:
    import onnx

    shape = tuple(tensor.dims)
    try:
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        dtype = _tensor(np.zeros(0, kind)).dtype
    except (TypeError, KeyError, ValueError):
        return Stored(shape, None, 0)
    return Stored(shape, dtype, math.prod(shape) * dtype.itemsize)


def _tensor(values: Any) -> Tensor:
    bits, dtype = _BITS.get(values.dtype.name, (values.dtype, None))
    tensor = torch.from_numpy(np.array(values).view(bits))
    return tensor if dtype is None else tensor.view(dtype)
