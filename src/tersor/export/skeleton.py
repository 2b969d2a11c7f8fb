# SPDX-License-Identifier: Apache-2.0
"""Make an ONNX graph without weights from a traced model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tersor.errors import InputError
from tersor.export.packages import needed, quiet
from tersor.export.session import HASH
from tersor.export.trace import Axes, Traced, reason_of

WEIGHTS = "weights.bin"
"""File that the graph names for its weights. There is none: a session is given the weights."""


_PURPOSE = "the export to ONNX"


@dataclass(frozen=True)
class Skeleton:
    """An ONNX graph without weights.

    Parameters
    ----------
    data
        The bytes of the ``.onnx`` file.
    names
        Names of its external initializers, which are those of tensors of the file.
    inside
        Bytes of the constants that are in no file and so are in the graph.
    """

    data: bytes
    names: tuple[str, ...]
    inside: int


def skeleton_of(
    traced: Traced,
    tensors: Mapping[str, Tensor],
    content_hash: str,
    inputs: Sequence[str] | None,
    outputs: Sequence[str],
) -> Skeleton:
    """Return the ONNX graph of a traced model without weights.

    Parameters
    ----------
    traced
        The traced model.
    tensors
        Dense tensors of the file, by name.
    content_hash
        Content hash of the file, in hexadecimal digits.
    inputs, outputs
        Names of inputs, or None for those of the model's arguments, and of outputs.

    Raises
    ------
    InputError
        If an operation cannot be written as ONNX.
    MissingExtraError
        If the packages are not installed.
    """
    for name in ("onnx", "onnxscript"):
        needed(name, _PURPOSE)
    model = _converted(traced.program, inputs, outputs)
    ir = needed("onnx_ir", _PURPOSE)
    state = traced.program.state_dict
    weights = {}
    for name, value in model.graph.initializers.items():
        if _same(state.get(name), tensors.get(name)):
            weights[name], value.const_value = value.const_value, None
    _simplify(model)
    names = [name for name in model.graph.initializers if name in weights]
    offset = 0  # one weight directly after the other, in the order of the map
    for name in names:
        weight = weights[name]
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            WEIGHTS, offset, weight.nbytes, weight.dtype, shape=weight.shape, name=name
        )
        offset += weight.nbytes
    inside = sum(
        value.const_value.nbytes
        for name, value in model.graph.initializers.items()
        if name not in weights
    )
    _name_inputs(model, inputs or traced.program.graph_signature.user_inputs)
    proto = ir.to_proto(model)
    _name_axes(proto.graph, traced.axes)
    _strip(proto.graph)
    for function in proto.functions:
        _strip(function)
    del proto.metadata_props[:]
    proto.metadata_props.add(key=HASH, value=content_hash)
    return Skeleton(proto.SerializeToString(deterministic=True), tuple(names), inside)


def _converted(
    program: ExportedProgram, inputs: Sequence[str] | None, outputs: Sequence[str]
) -> Any:
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,  # it would fold weights into constants
                verbose=False,
                input_names=inputs,
                output_names=outputs,
            )
    except MemoryError:
        raise
    except Exception as error:  # of a converter of an operation, of any class
        raise InputError(
            f"torch.onnx cannot write the graph of the model as ONNX: {reason_of(error)}; replace "
            "the operation that it names by others, or export the part of the model before it"
        ) from error
    assert exported is not None  # as always with dynamo
    return exported.model


def _name_inputs(model: Any, names: Sequence[Any]) -> None:
    """Give inputs their names, since one that is an output as well was renamed."""
    named = [name for name in names if isinstance(name, str)]  # others are constants
    if len(named) == len(model.graph.inputs):
        for value, name in zip(model.graph.inputs, named, strict=True):
            value.name = name


def _simplify(model: Any) -> None:
    """Simplify a graph. Weights without values stay as they are.

    For a convolution without bias, torch.onnx writes a bias of zeros that is made in each run. It
    would keep ONNX Runtime from fusing the convolution with the normalisation after it.
    """
    optimizer = needed("onnxscript.optimizer", _PURPOSE)
    with quiet():
        optimizer.optimize(model)
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) == 3:
            bias = node.inputs[2].const_value
            if bias is not None and not bias.numpy().any():
                node.resize_inputs(2)
    optimizer.remove_unused_nodes(model)


def _same(ours: Tensor | None, stored: Tensor | None) -> bool:
    if ours is None or stored is None:
        return False
    return ours.dtype == stored.dtype and ours.shape == stored.shape and ours.equal(stored)


def _name_axes(graph: Any, axes: list[Axes]) -> None:
    """Give the axes of any length their names, in inputs and outputs."""
    names: dict[str, str] = {}
    for value, own in zip(graph.input, axes, strict=True):
        shape = value.type.tensor_type.shape.dim
        names |= {shape[axis].dim_param: name for axis, name in own.items()}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), dim.dim_param)


def _strip(graph: Any) -> None:
    """Remove descriptions, types of intermediate values and where nodes come from."""
    del graph.value_info[:]
    del graph.metadata_props[:]
    graph.doc_string = ""
    for value in (*getattr(graph, "input", ()), *getattr(graph, "output", ())):
        if not isinstance(value, str):  # as those of functions are
            del value.metadata_props[:]
            value.doc_string = ""
    for tensor in getattr(graph, "initializer", ()):
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                _strip(inner)
