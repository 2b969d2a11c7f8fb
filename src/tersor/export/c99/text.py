# SPDX-License-Identifier: Apache-2.0
"""Write the C of a network: its plan, its constants and its coded weights."""

from __future__ import annotations

import math
import textwrap
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.export.c99.memory import FLOAT, Memory
from tersor.export.c99.plan import (
    Add,
    Apply,
    Clamp,
    Convolution,
    Grid,
    Move,
    Network,
    Operation,
    Pool,
    Softmax,
    Value,
)
from tersor.export.c99.weights import Coded

_LICENCE = "/* Made by `tersor export c`. */\n"
_FLOATS_PER_LINE, _BYTES_PER_LINE = 6, 16


@dataclass
class Program:
    """The parts of a program in C, as they come together.

    Parameters
    ----------
    network, memory
        What is to be written.
    coded
        Factored weights by name.
    """

    network: Network
    memory: Memory
    coded: Mapping[str, Coded]
    constants: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    slices: list[str] = field(default_factory=list)
    weights: bytearray = field(default_factory=bytearray)
    first_slices: dict[str, int] = field(default_factory=dict)
    constant_bytes: int = 0


def number(value: float) -> str:
    """Return a float32 as C writes it."""
    if math.isinf(value):
        return "-INFINITY" if value < 0 else "INFINITY"
    return f"{value:.9e}f"


def array(kind: str, name: str, items: Iterable[str], per_line: int) -> str:
    """Return the definition of an array."""
    items = list(items)
    lines = [", ".join(items[i : i + per_line]) for i in range(0, len(items), per_line)]
    return f"{kind} {name}[{len(items)}] = {{\n    " + ",\n    ".join(lines) + "};\n"


def floats(name: str, values: Tensor) -> str:
    """Return the definition of an array of constants.

    Raises
    ------
    InputError
        If one of them is not finite in float32.
    """
    numbers = values.detach().float().flatten()
    if not numbers.isfinite().all():
        raise InputError(
            "a weight, bias or folded normalisation has numbers that are infinite or NaN, so that "
            "the model has no outputs that C could compute; nothing was written"
        )
    return array("static const float", name, map(number, numbers.tolist()), _FLOATS_PER_LINE)


def program_of(network: Network, memory: Memory, coded: Mapping[str, Coded]) -> Program:
    """Return all parts of the program of a network.

    Raises
    ------
    InputError
        If a constant is not finite.
    """
    program = Program(network, memory, coded)
    for operation in network.operations:
        _WRITERS[type(operation)](program, operation)
    return program


def _at(program: Program, value: Value) -> str:
    for name, values in (("input", program.network.inputs), ("output", program.network.outputs)):
        if value in values:
            before = sum(v.numel for v in values[: values.index(value)])
            return f"{name} + {before}" if before else name
    return f"AT({program.memory.offsets[value]})"


def _shape(shape: Iterable[int]) -> str:
    return "{" + ", ".join(map(str, shape)) + "}"


def _constant(program: Program, kind: str, values: Tensor) -> str:
    name = f"{kind}_{len(program.calls)}"
    program.constants.append(floats(name, values))
    program.constant_bytes += FLOAT * values.numel()
    return name


def _convolution(program: Program, o: Operation) -> None:
    assert isinstance(o, Convolution)
    i = len(program.calls)
    coded = program.coded.get(o.weight.name or "")
    scale = coded.encoded.scale if coded else 1.0
    weight = _coded(program, o.weight.name or "", coded) if coded else _dense(program, o)
    fields = [
        *(f".{n} = {_shape(s)}" for n, s in (("in", o.inputs[0].shape), ("out", o.output.shape))),
        f".kernel = {_shape(o.kernel)}, .groups = {o.groups}",
        f".stride = {_shape(o.stride)}, .dilation = {_shape(o.dilation)}",
        f".before = {_shape(o.before)}",
        f".weight = {weight}",
        f".gain = {_constant(program, 'gain', o.gain * scale)}",
        f".bias = {_constant(program, 'bias', o.bias)}",
        f".low = {number(o.limits[0])}, .high = {number(o.limits[1])}",
    ]
    _layer(program, "tersor_convolution", fields)
    scratch, size = program.memory.scratch.get(o, (0, 0))
    source, target = _at(program, o.inputs[0]), _at(program, o.output)
    memory = f"AT({scratch}), {size}" if size else "0, 0"
    program.calls.append(
        f"    status = tersor_convolve(&layer_{i}, {source}, {target}, {memory});\n"
        "    if (status != TERSOR_OK)\n        return status;\n"
    )


def _layer(program: Program, kind: str, fields: Iterable[str]) -> None:
    body = ",\n    ".join(fields)
    name = f"layer_{len(program.calls)}"
    program.constants.append(f"static const {kind} {name} = {{\n    {body}}};\n")


def _dense(program: Program, o: Convolution) -> str:
    values = o.weight.rows.permute(0, 2, 3, 1)
    return f"{{.values = {_constant(program, 'values', values)}}}"


def _coded(program: Program, name: str, coded: Coded) -> str:
    if name not in program.first_slices:
        program.first_slices[name] = len(program.slices)
        encoded = coded.encoded
        for stream in encoded.streams:
            start, crc = len(program.weights), zlib.crc32(stream)
            program.weights += stream
            program.slices.append(
                f"{{.data = model_weights + {start}, .size = {len(stream)}, "
                f".checksum = 0x{crc:08X}u}}"
            )
        program.constants.append(_tensor(program.first_slices[name], coded))
    first = program.first_slices[name]
    return f"{{.coded = &coded_{first}, .slices = slices + {first}}}"


def _tensor(first: int, coded: Coded) -> str:
    e, rows = coded.encoded, coded.shape[0]
    fields = {
        "numel": math.prod(coded.shape),
        "rows": rows,
        "tile": e.tile,
        "rank": e.rank,
        "slice_rows": e.coding.slice_rows or rows,
        "dtype": 1,
        "kind": "TERSOR_FACTORS",
        "trellis": coded.trellis,
        "codebook_start": e.coding.codebook_start,
        "latent_start": e.coding.latent_start,
    }
    body = ", ".join(f".{key} = {value}" for key, value in fields.items())
    return f"static const tersor_tensor coded_{first} = {{\n" + _wrapped(body) + "};\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 96, initial_indent="    ", subsequent_indent="    ")


def _pool(program: Program, o: Operation) -> None:
    assert isinstance(o, Pool)
    i = len(program.calls)
    fields = [
        f".kind = TERSOR_{o.kind}, .whole_windows = {int(o.whole_windows)}",
        f".in = {_shape(o.inputs[0].shape)}, .out = {_shape(o.output.shape)}",
        f".window = {_shape(o.window)}, .stride = {_shape(o.stride)}",
        f".before = {_shape(o.before)}",
    ]
    _layer(program, "tersor_pool", fields)
    _call(program, o, f"tersor_pool_windows(&layer_{i}, ", "")


def _call(program: Program, o: Operation, start: str, rest: str) -> None:
    """Append a call that takes inputs, output, and then the rest."""
    places = ", ".join(_at(program, value) for value in (*o.inputs, o.output))
    program.calls.append(f"    {start}{places}{rest});\n")


def _add(program: Program, o: Operation) -> None:
    assert isinstance(o, Add)
    limits = ", ".join(map(number, o.limits))
    _call(program, o, "tersor_add(", f", {o.output.numel}, {limits}")


def _clamp(program: Program, o: Operation) -> None:
    assert isinstance(o, Clamp)
    limits = ", ".join(map(number, o.limits))
    _call(program, o, "tersor_clamp(", f", {o.output.numel}, {limits}")


def _apply(program: Program, o: Operation) -> None:
    assert isinstance(o, Apply)
    _call(program, o, f"tersor_apply(TERSOR_{o.function}, ", f", {o.output.numel}")


def _softmax(program: Program, o: Operation) -> None:
    assert isinstance(o, Softmax)
    count = o.output.numel // o.channels
    _call(program, o, "tersor_softmax(", f", {count}, {o.channels}")


def _move(program: Program, o: Operation) -> None:
    assert isinstance(o, Move)
    target = _at(program, o.output)
    lines = []
    if o.fill is not None:
        lines.append(f"    tersor_fill({target}, {o.output.numel}, {number(o.fill)});\n")
    for i, (value, grid) in enumerate(zip(o.inputs, o.grids, strict=True)):
        name = f"grid_{len(program.calls)}_{i}"
        program.constants.append(_grid(name, grid))
        ends = _moved(program, value, grid.start), _moved(program, o.output, grid.target)
        lines.append(f"    tersor_move(&{name}, {ends[0]}, {ends[1]});\n")
    program.calls.append("".join(lines))


def _moved(program: Program, value: Value, elements: int) -> str:
    place = _at(program, value)
    if place.startswith("AT("):
        return f"AT({program.memory.offsets[value] + FLOAT * elements})"
    return f"{place} + {elements}" if elements else place


def _grid(name: str, grid: Grid) -> str:
    numbers = [grid.rows, grid.columns, *(FLOAT * n for n in (grid.block, *grid.steps))]
    order = [*numbers[:3], *numbers[3:]]
    return f"static const tersor_grid {name} = {_shape(order)};\n"


_WRITERS = {
    Convolution: _convolution,
    Pool: _pool,
    Add: _add,
    Clamp: _clamp,
    Apply: _apply,
    Softmax: _softmax,
    Move: _move,
}


def model_c(program: Program) -> str:
    """Return the text of ``model.c``."""
    count = len(program.slices)
    slices = array("static const tersor_section", "slices", program.slices, 1) if count else ""
    checked = f"tersor_check(slices, {count})" if count else "TERSOR_OK"
    calls = "".join(program.calls)
    status = "    tersor_status status;\n" if "status =" in calls else ""
    return f"""{_LICENCE}#include "model.h"

#include <math.h>

#include "tersor_runtime.h"

#define AT(offset) ((void *)(arena + (offset)))

{slices}
{"".join(program.constants)}
tersor_status model_init(model *state, void *arena, size_t size)
{{
    const size_t odd = (size_t)((uintptr_t)arena & 7u), skipped = odd ? 8u - odd : 0u;
    if (size < skipped || size - skipped < MODEL_ARENA_BYTES - 7u)
        return TERSOR_SPACE;
    state->arena = (uint8_t *)arena + skipped;
    return {checked};
}}

tersor_status model_invoke(const model *state, const float *input, float *output)
{{
    uint8_t *const arena = state->arena;
{status}{calls}    return TERSOR_OK;
}}
"""


def model_h(program: Program) -> str:
    """Return the text of ``model.h``."""
    network = program.network
    inputs, outputs = (sum(v.numel for v in vs) for vs in (network.inputs, network.outputs))
    return f"""{_LICENCE}#ifndef MODEL_H
#define MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "tersor_decoder.h"

#ifdef __cplusplus
extern "C" {{
#endif

/* Bytes of memory that the model works in: nothing in it needs to be kept between two calls. */
#define MODEL_ARENA_BYTES {program.memory.nbytes + 7}u
/* Elements of the input and the output, in the order of torch, without the axis of samples. If the
 * model has several, they follow one another. */
#define MODEL_INPUT_ELEMENTS {inputs}u
#define MODEL_OUTPUT_ELEMENTS {outputs}u

typedef struct {{
    uint8_t *arena;
}} model;

/* Use a memory, of any alignment. TERSOR_SPACE: it is too small. TERSOR_CHECKSUM: the weights are
 * damaged. */
tersor_status model_init(model *state, void *arena, size_t size);

/* Compute the output for one input. Several models with arenas of their own may run at a time. */
tersor_status model_invoke(const model *state, const float *input, float *output);

extern const uint8_t model_weights[{max(1, len(program.weights))}];

#ifdef __cplusplus
}}
#endif
#endif
"""


def weights_c(program: Program) -> str:
    """Return the text of ``weights.c``: the coded integers of all factors, as the file has them."""
    data = bytes(program.weights) or b"\0"
    items = (f"0x{byte:02X}" for byte in data)
    return f'{_LICENCE}#include "model.h"\n\n' + array(
        "const uint8_t", "model_weights", items, _BYTES_PER_LINE
    )


def check_data_c(inputs: Tensor, outputs: Tensor) -> str:
    """Return the text of ``check_data.c``: inputs, and what torch computes for them.

    Parameters
    ----------
    inputs, outputs
        Of shape (samples, elements).
    """
    assert torch.is_tensor(inputs) and len(inputs) == len(outputs)
    parts = [
        array(f"const float {name}", "", map(number, values.flatten().tolist()), 6).replace(
            " [", "["
        )
        for name, values in (("check_inputs", inputs.float()), ("check_outputs", outputs.float()))
    ]
    return (
        f'{_LICENCE}#include "check_data.h"\n\nconst unsigned check_count = {len(inputs)};\n'
        + "".join(parts)
    )
