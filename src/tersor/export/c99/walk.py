# SPDX-License-Identifier: Apache-2.0
"""Turn the graph of `torch.export` into operations of the C runtime."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from tersor.errors import InputError
from tersor.export.c99.plan import Grid, Move, Network, Operation, Shape, Value
from tersor.text import some


class Unsupported(Exception):
    """An operation has a form that the runtime lacks; the message completes "NAME of ..."."""


Handler = Callable[["Walk", Node, dict[str, Any]], Value]
"""Function that writes an operation: walk, node and arguments by name."""


class Walk:
    """The state of a walk through a graph.

    Parameters
    ----------
    program
        The traced model.
    handlers
        The function that writes each operation of torch, by name.
    """

    def __init__(self, program: ExportedProgram, handlers: Mapping[str, Handler]) -> None:
        self.network = Network()
        self.names: dict[Node, str] = {}
        self._found: dict[Node, Value | Tensor] = {}
        self._program, self._handlers = program, handlers

    def value(self, node: Any) -> Value:
        """Return what a node stands for, which must be known at run time only.

        Raises
        ------
        Unsupported
            If it is a constant.
        """
        found = self._found.get(node)
        if not isinstance(found, Value):
            raise Unsupported("a constant where a tensor of the run time is expected")
        return found

    def constant(self, node: Any) -> Tensor | None:
        """Return the value of a constant; None if the node is no constant."""
        if isinstance(node, int | float):
            return torch.tensor(float(node))
        found = self._found.get(node)
        return found if isinstance(found, Tensor) else None

    def emit(self, operation: Operation) -> Value:
        """Append an operation, and return its output."""
        self.network.operations.append(operation)
        return operation.output

    def producer(self, node: Node) -> Operation | None:
        """Return the operation that writes a value, if nothing but the current node reads it."""
        value = self.value(node)
        sharing = [n for n, v in self._found.items() if v is value]
        uses = {user for n in sharing for user in n.users} - set(sharing)
        if len(uses) > 1:
            return None
        return next((o for o in self.network.operations if o.output is value), None)

    def run(self) -> Network:
        """Return the network.

        Raises
        ------
        InputError
            If an operation has no form in C; the message names all.
        """
        signature = self._program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        names |= signature.inputs_to_lifted_tensor_constants
        missing: list[str] = []
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, names)
            elif node.op == "output":
                self._outputs(node, missing)
            elif not self._computed(node, missing):
                missing.append(told(node))
        if missing:
            raise InputError(
                f"the export to C cannot write {some(list(dict.fromkeys(missing)))}; nothing was "
                "written. Use other layers there, or export the part of the model before or after"
            )
        return self.network

    def _placeholder(self, node: Node, names: dict[str, str]) -> None:
        if name := names.get(node.name):
            held = {**self._program.state_dict, **self._program.constants}
            self._found[node], self.names[node] = held[name].detach(), name
            return
        given = node.meta.get("val")
        if not isinstance(given, Tensor):
            return
        if given.dtype != torch.float32:
            raise InputError(
                f"the input {node.name!r} is of type {given.dtype}; models in C take float32"
            )
        try:
            value = Value(shape_of(given), given.ndim)
        except Unsupported as reason:
            raise InputError(f"the input {node.name!r} is {reason}") from None
        self.network.inputs.append(value)
        self._found[node] = self.emit(to_channels_last(value))

    def _outputs(self, node: Node, missing: list[str]) -> None:
        for found in node.args[0]:  # type: ignore[union-attr]
            value = self._found.get(found)  # type: ignore[arg-type]
            if isinstance(value, Value):
                self.network.outputs.append(self.emit(to_channels_first(value)))
            elif found is not None and not missing:
                missing.append("an output that does not depend on the inputs")

    def _computed(self, node: Node, missing: list[str]) -> bool:
        """Compute a constant, or append operations; return False if there are none for a node."""
        inputs = node.all_input_nodes
        if node.target is operator.getitem and node.args[1] == 0 and inputs[0] in self._found:
            self._found[node] = self._found[inputs[0]]
            return True
        if any(source not in self._found for source in inputs):
            return True  # the reason is in the list already
        if all(isinstance(self._found[source], Tensor) for source in inputs):
            self._found[node] = self._evaluated(node)
            return True
        handler = self._handlers.get(str(node.target).removeprefix("aten."))
        if handler is None:
            return False
        try:
            self._found[node] = handler(self, node, arguments(node))
        except Unsupported as reason:
            missing.append(f"{reason} ({told(node)})")
        return True

    def _evaluated(self, node: Node) -> Tensor:
        def known(part: Any) -> Any:
            return self._found[part] if isinstance(part, Node) else part

        args = torch.fx.map_arg((node.args, node.kwargs), known)
        result = node.target(*args[0], **args[1])  # type: ignore[operator]
        assert isinstance(result, Tensor)
        return result


def arguments(node: Node) -> dict[str, Any]:
    """Return all arguments of a call by name, with defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {a.name: a.default_value for a in schema.arguments}
    given |= {a.name: value for a, value in zip(schema.arguments, node.args, strict=False)}
    return given | node.kwargs


def told(node: Node) -> str:
    """Return the operation of a node and where it is, for messages."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("",))[0] if stack else ""
    name = str(node.target).removeprefix("aten.").removesuffix(".default")
    return f"{name} in {path}" if path else name


def shape_of(tensor: Tensor) -> Shape:
    """Return the shape in memory of a tensor of one sample.

    Raises
    ------
    Unsupported
        If it has no such shape.
    """
    shape = [int(n) for n in tensor.shape]
    if not 2 <= len(shape) <= 4 or shape[0] != 1 or 0 in shape:
        raise Unsupported(
            f"a tensor of shape {tuple(shape)}, where C takes one sample of 1 to 3 axes"
        )
    _, channels, *space = shape
    height, width = [1, 1, *space][-2:]
    return height, width, channels


def to_channels_last(value: Value) -> Move:
    """Return the operation that gives a tensor in torch's order the order of memory."""
    height, width, channels = value.shape
    grid = Grid(height * width, channels, 1, 0, 0, (1, height * width, channels, 1))
    if value.is_vector or channels == 1:
        grid = Grid(1, 1, value.numel, 0, 0, (0, 0, 0, 0))
    return Move([value], Value(value.shape, value.rank), [grid])


def to_channels_first(value: Value) -> Move:
    """Return the operation that gives a tensor torch's order."""
    height, width, channels = value.shape
    grid = Grid(height * width, channels, 1, 0, 0, (channels, 1, 1, height * width))
    if value.is_vector or channels == 1:
        grid = Grid(1, 1, value.numel, 0, 0, (0, 0, 0, 0))
    return Move([value], Value(value.shape, value.rank), [grid])
