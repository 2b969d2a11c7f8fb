# SPDX-License-Identifier: Apache-2.0
"""Products of GGML with a quantized weight, for `kernels.py`. Needs ggml-python.

A weight lies as GGML's kernels want it: with rows interleaved where they have that for its type and
the processor, as llama.cpp loads it. The graphs are there before a product is timed; the input is
copied in, and the output out.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import ggml
import torch
from torch import Tensor


@ggml.ggml_log_callback
def _silent(level: int, text: bytes, data: int) -> None:
    pass  # GGML reports every weight


ggml.ggml_log_set(_silent, None)


def _floats(tensor: Tensor) -> Any:
    return ctypes.cast(tensor.data_ptr(), ctypes.POINTER(ctypes.c_float))


NODES = 8
"""Room in a graph: a weight, an input and their product."""


def _context(tensors: int, graphs: int = 0) -> Any:
    """Where so many tensors and graphs are described; the tensors' values lie elsewhere."""
    size = tensors * ggml.ggml_tensor_overhead()
    size += graphs * ggml.ggml_graph_overhead_custom(NODES, False)
    return ggml.ggml_init(ggml.ggml_init_params(mem_size=size, mem_buffer=None, no_alloc=True))


def quantize(weight: Tensor, kind: int) -> ctypes.Array[ctypes.c_char]:
    """The rows of a weight in a type of GGML."""
    rows, inputs = weight.shape
    block = ggml.ggml_blck_size(kind)
    if inputs % block:  # GGML would end the process
        raise ValueError(f"{inputs} inputs are not whole blocks of {block}")
    data = ctypes.create_string_buffer(rows * ggml.ggml_row_size(kind, inputs))
    ggml.ggml_quantize_chunk(kind, _floats(weight), data, 0, rows, inputs, None)
    return data


def dequantize(data: ctypes.Array[ctypes.c_char], kind: int, shape: torch.Size) -> Tensor:
    weight = torch.empty(shape)
    traits = ggml.ggml_get_type_traits(kind).contents
    traits.to_float(ctypes.addressof(data), _floats(weight), weight.numel())
    return weight


def _buffer_type(backend: int, kind: int, shape: torch.Size) -> int:
    """Type of the buffer for such a weight, the one of interleaved rows if it has a product."""
    device = ggml.ggml_backend_get_device(backend)
    registry = ggml.ggml_backend_dev_backend_reg(device)
    context = _context(3)
    weight = ggml.ggml_new_tensor_2d(context, kind, shape[1], shape[0])
    x = ggml.ggml_new_tensor_2d(context, ggml.GGML_TYPE_F32, shape[1], 1)
    product = ggml.ggml_mul_mat(context, weight, x)

    def fits(where: int) -> bool:
        weight.contents.buffer = buffer = ggml.ggml_backend_buft_alloc_buffer(where, 0)
        found = ggml.ggml_backend_dev_supports_op(device, product)
        ggml.ggml_backend_buffer_free(buffer)
        return bool(found)

    name = b"ggml_backend_dev_get_extra_bufts"
    address = ggml.ggml_backend_reg_get_proc_address(registry, name)
    others = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(device)
    plain = ggml.ggml_backend_get_default_buffer_type(backend)
    chosen = next(filter(fits, itertools.takewhile(bool, others)), plain)
    ggml.ggml_free(context)
    return int(chosen)


class Weights:
    """Copies of a quantized weight, and a graph for the product with each.

    Parameters
    ----------
    data
        What ``quantize`` gave.
    kind, shape
        Type of GGML, and the weight's outputs and inputs.
    number
        Copies.
    """

    def __init__(
        self, data: ctypes.Array[ctypes.c_char], kind: int, shape: torch.Size, number: int
    ) -> None:
        self.rows, self.inputs = shape
        self.backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self.backend, torch.get_num_threads())
        context = _context(number)
        self.weights = [
            ggml.ggml_new_tensor_2d(context, kind, self.inputs, self.rows) for _ in range(number)
        ]
        where = _buffer_type(self.backend, kind, shape)
        buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, where)
        for weight in self.weights:
            ggml.ggml_backend_tensor_set(weight, data, 0, len(data))
        self.held = [(context, buffer)]
        self.graphs: dict[int, tuple[Any, Any, list[Any]]] = {}

    def prepare(self, batch: int) -> tuple[Any, Any, list[Any]]:
        """Graphs for so many inputs at once, which share a tensor of inputs and one of outputs."""
        context = _context(2 + len(self.weights), len(self.weights))
        x = ggml.ggml_new_tensor_2d(context, ggml.GGML_TYPE_F32, self.inputs, batch)
        y = ggml.ggml_new_tensor_2d(context, ggml.GGML_TYPE_F32, self.rows, batch)
        buffer = ggml.ggml_backend_alloc_ctx_tensors(context, self.backend)
        graphs = []
        for weight in self.weights:
            product = ggml.ggml_mul_mat(context, weight, x)
            ggml.ggml_backend_tensor_alloc(buffer, product, y.contents.data)
            graphs.append(ggml.ggml_new_graph_custom(context, NODES, False))
            ggml.ggml_build_forward_expand(graphs[-1], product)
        self.held.append((context, buffer))
        return x, y, graphs

    def linear(self, number: int, inputs: Tensor) -> Tensor:
        """Product of the inputs with the copy of this number."""
        batch = len(inputs)
        if batch not in self.graphs:
            self.graphs[batch] = self.prepare(batch)
        x, y, graphs = self.graphs[batch]
        outputs = torch.empty(batch, self.rows)
        ggml.ggml_backend_tensor_set(x, inputs.data_ptr(), 0, inputs.nbytes)
        ggml.ggml_backend_graph_compute(self.backend, graphs[number])
        ggml.ggml_backend_tensor_get(y, outputs.data_ptr(), 0, outputs.nbytes)
        return outputs

    def __del__(self) -> None:
        for context, buffer in self.held:
            ggml.ggml_backend_buffer_free(buffer)
            ggml.ggml_free(context)
        ggml.ggml_backend_free(self.backend)
