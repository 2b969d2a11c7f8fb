# SPDX-License-Identifier: Apache-2.0
"""Export a compressed model to C99: its own code, its coded weights, and what runs them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.calibration.samples import tensors_in
from tersor.errors import InputError
from tersor.export.c99 import memory, sources, text
from tersor.export.c99.handlers import network_of
from tersor.export.c99.plan import Convolution, Network
from tersor.export.c99.weights import coded_weights
from tersor.export.prepared import (
    PathLike,
    checked,
    dense_copy,
    holds_factors,
    new_folder,
    replacing_all,
    without_shortcuts,
)
from tersor.export.trace import Call, Traced, call_of, changed, trace
from tersor.io import save

_SAMPLES = 2
"""Samples of the inputs whose outputs are written for ``make check``."""


@dataclass(frozen=True)
class ExportedC:
    """Report of an export by `c`, which prints as a few lines.

    Parameters
    ----------
    folder
        The folder.
    weight_bytes
        Bytes of the coded weights, as the ``.tersor`` file has them.
    constant_bytes
        Bytes of the numbers that are not factored: biases, folded normalisation, small weights.
    arena_bytes
        Bytes of memory that a run takes, besides its stack.
    multiplications
        Products that a run sums up, besides decoding.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> report = tersor.compress(model, ratio=4)
    >>> done = tersor.export.c(model, torch.randn(1, 64), "firmware")
    >>> done.multiplications
    4096
    """

    folder: Path
    weight_bytes: int
    constant_bytes: int
    arena_bytes: int
    multiplications: int

    @property
    def rows(self) -> dict[str, int]:
        """Return the numbers by what they count."""
        return {
            "coded weights, bytes": self.weight_bytes,
            "other constants, bytes": self.constant_bytes,
            "arena, bytes": self.arena_bytes,
            "multiplications of a run": self.multiplications,
        }

    def __str__(self) -> str:
        return "\n".join(f"{name}: {number:,}" for name, number in self.rows.items())


def c(
    model: nn.Module, inputs: Any, folder: PathLike, *, file: PathLike | None = None
) -> ExportedC:
    """Export a compressed model to C99 that computes with its coded weights.

    The folder gets ``model.h`` and ``model.c``, the calls of the layers in order; ``weights.c``,
    the coded weights, byte for byte as in the file; ``tersor/``, the runtime and the decoder; a
    ``Makefile``, a ``CMakeLists.txt`` and a ``README.md``. Nothing in it allocates memory. Weights
    are decoded just before a layer is computed, and made dense row by row. ``make check`` compares
    the outputs with those of torch.

    Parameters
    ----------
    model
        Model with factors, from `tersor.compress` or `tersor.load`, before `tersor.optimize`. If
        ``file`` is given, any model of that architecture.
    inputs
        Typical inputs, float32: one tensor, a tuple of all arguments, or a dict of arguments by
        name. The program takes one sample of that shape.
    folder
        Folder to write; it is made if its parent exists. Files of these names are replaced when
        all of them are complete.
    file
        A ``.tersor`` file of the model, whose weights are used. By default those of the model.

    Returns
    -------
    ExportedC
        What the program takes.

    Raises
    ------
    InputError
        If the model holds no factors, torch.export cannot trace it, or C has no form of one of its
        operations; the message names all of these. Nothing is written then.
    FileFormatError
        If ``file`` is damaged.
    OSError
        If writing fails.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.ReLU())
    >>> report = tersor.compress(model, ratio=4)
    >>> print(tersor.export.c(model, torch.randn(1, 8, 12, 12), "firmware"))
    coded weights, bytes: ...
    """
    if file is None and not holds_factors(model):
        raise InputError(
            "the model holds no factors to decode; call tersor.compress first or tersor.load a "
            "file, and export before tersor.optimize"
        )
    target = Path(folder)
    with tempfile.TemporaryDirectory() as temporary:
        stored = Path(temporary) / "model.tersor"
        if file is None:
            save(model, stored)
        else:
            shutil.copyfile(checked(file), stored)
        with without_shortcuts(), torch.no_grad():
            plain = dense_copy(model, stored).float()
            call = call_of(plain, inputs)
            network = network_of(_traced(plain, call).program)
            samples = _samples(plain, call)
        program = _program(network, stored)
    return _write(target, program, samples)


def _sample(call: Call, model: nn.Module, position: int) -> Call:
    """Return the call for one sample of its inputs."""
    return changed(model, call, lambda old: [x[position : position + 1] for x in old])


def _traced(model: nn.Module, call: Call) -> Traced:
    if any(not x.ndim for x in call.tensors):
        raise InputError("an input is a single number; models in C take tensors of one sample")
    return trace(model, _sample(call, model, 0), False)


def _samples(model: nn.Module, call: Call) -> tuple[Tensor, Tensor]:
    """Return inputs and outputs of a few samples, one in each row."""
    rows = []
    for position in range(min(_SAMPLES, *(len(x) for x in call.tensors))):
        one = _sample(call, model, position)
        given, found = one.tensors, list(tensors_in(one.run(model)))
        rows.append([torch.cat([x.flatten() for x in part]) for part in (given, found)])
    inputs, outputs = (torch.stack(part) for part in zip(*rows, strict=True))
    return inputs, outputs


def _program(network: Network, stored: Path) -> text.Program:
    layers = [o for o in network.operations if isinstance(o, Convolution)]
    coded = coded_weights(stored, [o.weight.name for o in layers if o.weight.name])
    scratch = {o: memory.scratch_bytes(coded[n]) for o in layers if (n := o.weight.name) in coded}
    return text.program_of(network, memory.plan(network, scratch), coded)


def _write(target: Path, program: text.Program, samples: tuple[Tensor, Tensor]) -> ExportedC:
    done = ExportedC(
        target,
        len(program.weights),
        program.constant_bytes,
        program.memory.nbytes,
        memory.multiplications(program.network),
    )
    files = sources.files() | {
        "model.h": text.model_h(program),
        "model.c": text.model_c(program),
        "weights.c": text.weights_c(program),
        "check_data.c": text.check_data_c(*samples),
        "README.md": sources.readme(done.rows),
    }
    with new_folder(target):
        _replace(target, files)
    return done


def _replace(target: Path, files: Mapping[str, str]) -> None:
    (target / sources.RUNTIME).mkdir(exist_ok=True)
    with replacing_all([target / name for name in files]) as temporary:
        for path, content in zip(temporary, files.values(), strict=True):
            path.write_text(content)
