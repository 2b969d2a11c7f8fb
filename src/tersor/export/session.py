# SPDX-License-Identifier: Apache-2.0
"""Run an exported folder with ONNX Runtime."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tersor.errors import InputError
from tersor.export.packages import needed
from tersor.storage import label
from tersor.storage.archive import as_tensor
from tersor.storage.opened import OpenFile, open_file
from tersor.text import some
from tersor.units import parse_size

SKELETON, FILE, MAP = "skeleton.onnx", "model.tersor", "map.json"
"""Names of the files in a folder: the graph without weights, the weights, and which of the weights
the graph takes."""

HASH = "tersor.content_hash"
"""Key of the metadata of the graph that holds the content hash of its file."""

VERSION = 1
"""Version of the map."""

_PURPOSE = "running a model with ONNX Runtime"


def onnx_session(
    folder: str | os.PathLike[str],
    providers: Sequence[Any] | None = None,
    *,
    options: Any = None,
    max_bytes: str | int | None = None,
) -> Any:
    """Return a session of ONNX Runtime for a folder that `onnx` wrote.

    The weights are decoded in parallel and handed to the session; no dense file is written. The
    model's code is not needed.

    Parameters
    ----------
    folder
        Folder with ``skeleton.onnx``, ``model.tersor`` and ``map.json``.
    providers
        Execution providers as `onnxruntime.InferenceSession` takes them; by default the CPU's.
    options
        An `onnxruntime.SessionOptions`, to which the weights are added; by default a new one.
    max_bytes
        Limit for memory, as for `tersor.load`.

    Returns
    -------
    InferenceSession
        Session to ``run``.

    Raises
    ------
    InputError
        If a file is missing, the skeleton is of another ``.tersor`` file, or ONNX Runtime refuses
        the graph.
    FileFormatError
        If the ``.tersor`` file is damaged.
    MissingExtraError
        If ONNX Runtime is not installed.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> report = tersor.compress(model, ratio=4)
    >>> done = tersor.export.onnx(model, torch.randn(2, 64), "exported")
    >>> session = tersor.export.onnx_session("exported")
    >>> session.run(None, {"input": torch.randn(5, 64).numpy()})[0].shape
    (5, 64)
    """
    needed("onnxruntime", _PURPOSE)
    root = Path(folder)
    stated, names = read_map(root / MAP)
    limit = None if max_bytes is None else parse_size(max_bytes)
    with open_file(root / FILE, max_bytes=limit) as file:
        if hash_of(file) != stated:
            raise InputError(
                f"{root / FILE} is not the file that {root / SKELETON} was exported with: their "
                "content hashes differ; export both together"
            )
        session = start(root / SKELETON, file, names, providers, options)
    check_hash(session, stated, root / SKELETON)
    return session


def hash_of(file: OpenFile) -> str:
    """Return the content hash that a file states; if it states none, compute it."""
    return file.content_hash or label.content_hash(file).hex()


def map_text(content_hash: str, names: Sequence[str]) -> str:
    """Return the text of a map.

    Parameters
    ----------
    content_hash
        Content hash of the ``.tersor`` file.
    names
        Names of the tensors that the graph takes as initializers of the same names.
    """
    content = {"version": VERSION, "content_hash": content_hash, "initializers": [*names]}
    return json.dumps(content, indent=0) + "\n"


def read_map(path: Path) -> tuple[str, list[str]]:
    """Return the content hash and the names that a map holds.

    Raises
    ------
    InputError
        If there is no such file, or it is not a map.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there; give a folder that tersor.export.onnx wrote")
    try:
        content = json.loads(path.read_text())
        version, stated, names = (content[k] for k in ("version", "content_hash", "initializers"))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged; export the model again") from None
    if version != VERSION:
        raise InputError(f"{path} is of version {version!r}; this release reads {VERSION}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} is damaged; export the model again")
    return str(stated), names


def start(
    skeleton: Path,
    file: OpenFile,
    names: Sequence[str],
    providers: Sequence[Any] | None = None,
    options: Any = None,
) -> Any:
    """Return a session for a graph with the weights of an open file.

    Parameters
    ----------
    skeleton, file, names
        The graph, the file, and the names of its tensors that the graph takes.
    providers, options
        As for `onnx_session`.

    Raises
    ------
    InputError
        If the file lacks a tensor, or ONNX Runtime refuses the graph.
    """
    ort = needed("onnxruntime", _PURPOSE)
    if not skeleton.is_file():
        raise InputError(f"{skeleton} is not there; give a folder that tersor.export.onnx wrote")
    if missing := [name for name in names if name not in file]:
        raise InputError(f"the map names {some(missing)}, which the file lacks; export again")
    decoded = {name: as_tensor(value) for name, value in file.stream(names)}
    values = [ort.OrtValue.from_dlpack(decoded[file.original(name)]) for name in names]
    options = ort.SessionOptions() if options is None else options
    if names:
        options.add_external_initializers([*names], values)
    try:
        chosen = ["CPUExecutionProvider"] if providers is None else [*providers]
        return ort.InferenceSession(str(skeleton), options, providers=chosen)
    except Exception as error:  # its classes have no common base of their own
        raise InputError(
            f"ONNX Runtime {ort.__version__} refuses the graph: {_said(error)}; if it lacks "
            "an operator for 16-bit numbers, export model.float(), which needs no larger file; if "
            "it is too old for the opset, install a newer one; else export again"
        ) from error


def _said(error: Exception) -> str:
    return " ".join(str(error).removeprefix("[ONNXRuntimeError] : ").split())[:400]


def check_hash(session: Any, stated: str, skeleton: Path) -> None:
    """Refuse a session whose graph was exported with another file.

    Raises
    ------
    InputError
        If the content hash in the graph is not the stated one.
    """
    if session.get_modelmeta().custom_metadata_map.get(HASH) != stated:
        raise InputError(
            f"{skeleton} was exported with another file than the one beside it; export again"
        )
