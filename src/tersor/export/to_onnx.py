# SPDX-License-Identifier: Apache-2.0
"""Export a compressed model to ONNX: a graph without weights, and the weights as a small file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tersor.calibration.samples import tensors_in
from tersor.errors import InputError
from tersor.export import compare, session
from tersor.export.packages import needed
from tersor.export.prepared import (
    PathLike,
    checked,
    dense_copy,
    holds_factors,
    new_folder,
    replacing_all,
    without_shortcuts,
)
from tersor.export.skeleton import Skeleton, skeleton_of
from tersor.export.trace import Call, Traced, call_of, trace
from tersor.io import dense_tensors, save
from tersor.storage.opened import open_file
from tersor.units import format_size

LARGE = 1_000_000
"""Bytes of constants inside a skeleton that are worth a note."""


@dataclass(frozen=True)
class Exported:
    """Report of an export by `onnx`, which prints as a few lines.

    Parameters
    ----------
    folder
        The folder.
    nbytes
        Bytes of each file in it, by name.
    error
        Largest relative error of the outputs against torch; None if it was not checked.
    notes
        Sentences about what the export could not do.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> report = tersor.compress(model, ratio=4)
    >>> done = tersor.export.onnx(model, torch.randn(2, 64), "exported")
    >>> sorted(done.nbytes), done.error < 1e-5, done.notes
    (['map.json', 'model.tersor', 'skeleton.onnx'], True, ())
    """

    folder: Path
    nbytes: dict[str, int]
    error: float | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.folder / name}: {format_size(n)}" for name, n in self.nbytes.items()]
        if self.error is not None:
            lines.append(f"largest relative error of outputs against torch: {self.error:.1e}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def onnx(
    model: nn.Module,
    inputs: Any,
    folder: PathLike,
    *,
    file: PathLike | None = None,
    dynamic: bool | Mapping[str, Mapping[int, str]] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    check: bool = True,
) -> Exported:
    """Export a compressed model for ONNX Runtime: a graph without weights beside a small file.

    The folder gets ``skeleton.onnx``, whose weights are external initializers, ``model.tersor``
    with these weights, and ``map.json``, which lists the tensors that the graph takes from the
    file. `onnx_session` runs the folder. The model is exported in evaluation mode, and is not
    changed.

    Parameters
    ----------
    model
        Model with factors, from `tersor.compress` or `tersor.load`, before `tersor.optimize`. If
        ``file`` is given, any model of that architecture.
    inputs
        Typical inputs of the model: one tensor, a tuple of all arguments, or a dict of arguments by
        name.
    folder
        Folder to write; it is made if its parent exists. Files of these names are replaced when
        all of them are complete.
    file
        A ``.tersor`` file of the model, which is copied as it is, and whose weights are used. By
        default the model is saved, with a content hash.
    dynamic
        Axes of any length, as in ``{"tokens": {0: "batch", 1: "length"}}``: names of axes by
        position and argument. By default the first axis of each input that has as many samples as
        the first input is dynamic, if the model allows it; a note says if not. False makes none.
    input_names, output_names
        Names in the graph. By default inputs have the names of the model's arguments, and outputs
        their keys if the model returns a dict, else ``output``, or ``output_0`` and so on.
    check
        If True (default), run the folder with ONNX Runtime before it gets its name, with the inputs
        and with random ones, and compare the outputs with those of torch.

    Returns
    -------
    Exported
        Sizes of the files, the largest error and notes.

    Raises
    ------
    InputError
        If the model holds no factors; if torch.export cannot trace it, or an operation cannot be
        written as ONNX; if ONNX Runtime cannot run it or its outputs differ.
    FileFormatError
        If ``file`` is damaged.
    MissingExtraError
        If onnx and onnxscript (extra ``onnx``) or, with ``check``, onnxruntime (extra
        ``onnx-runtime``) are not installed.
    OSError
        If writing fails.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.ReLU())
    >>> report = tersor.compress(model, ratio=4)
    >>> done = tersor.export.onnx(model, torch.randn(1, 8, 12, 12), "exported")
    >>> done.error < 1e-5
    True
    """
    for package in ("onnx", "onnxscript", *(["onnxruntime"] if check else [])):
        needed(package, "the export to ONNX" if package != "onnxruntime" else "check=True")
    if file is None and not holds_factors(model):
        raise InputError(
            "the model holds no factors to store in a small file; call tersor.compress first or "
            "tersor.load a file, and export before tersor.optimize; for a dense model, "
            "torch.onnx.export is enough"
        )
    target = Path(folder)
    names = (session.SKELETON, session.FILE, session.MAP)
    with new_folder(target), replacing_all([target / name for name in names]) as temporary:
        if file is None:
            save(model, temporary[1], content_hash=True)
        else:
            shutil.copyfile(checked(file), temporary[1])
        with without_shortcuts():
            plain = dense_copy(model, temporary[1])
            traced = trace(plain, call_of(plain, inputs), dynamic)
            skeleton = _write(plain, traced, temporary, input_names, output_names)
            error, notes = _compared(plain, traced, skeleton, temporary) if check else (None, ())
    notes = (*traced.notes, *_notes(skeleton), *notes)
    sizes = {name: (target / name).stat().st_size for name in names}
    return Exported(target, sizes, error, notes)


def _write(
    plain: nn.Module,
    traced: Traced,
    temporary: Sequence[Path],
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
) -> Skeleton:
    """Write the graph and the map of a traced model, and return the graph."""
    graph, stored, listed = temporary
    own = _output_names(traced.call, plain)
    for given, count, what in ((inputs, len(traced.axes), "in"), (outputs, len(own), "out")):
        if given is not None and len(given) != count:
            raise InputError(f"{what}put_names has {len(given)} names for {count} {what}puts")
    with open_file(stored) as opened:
        content_hash, tensors = session.hash_of(opened), dense_tensors(opened)
    made = skeleton_of(traced, tensors, content_hash, inputs, own if outputs is None else outputs)
    graph.write_bytes(made.data)
    listed.write_text(session.map_text(content_hash, made.names))
    return made


def _compared(
    plain: nn.Module, traced: Traced, skeleton: Skeleton, temporary: Sequence[Path]
) -> tuple[float, tuple[str, ...]]:
    """Return the error of the files' session, and notes."""
    graph, stored, _ = temporary
    with open_file(stored) as opened:
        started = session.start(graph, opened, skeleton.names)
    return compare.check(started, plain, traced)


def _output_names(call: Call, plain: nn.Module) -> list[str]:
    output = call.run(plain)
    others = {type(x).__name__ for x in tree_leaves(output) if not isinstance(x, Tensor | None)}
    if others:
        raise InputError(
            f"the model returns {' and '.join(sorted(others))} among its outputs; ONNX has tensors "
            "only: wrap the model in one that returns tensors, or tuples, lists or dicts of them"
        )
    if isinstance(output, Mapping):
        held = {name: value for name, value in output.items() if value is not None}
        if all(isinstance(value, Tensor) for value in held.values()):
            return [str(name) for name in held]
    count = len(list(tensors_in(output)))
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def _notes(skeleton: Skeleton) -> tuple[str, ...]:
    if skeleton.inside < LARGE:
        return ()
    return (
        f"{format_size(skeleton.inside)} of constants are inside {session.SKELETON}, since the "
        "file does not hold them: buffers that are not persistent, or numbers in the model's code",
    )
