# SPDX-License-Identifier: Apache-2.0
"""Open a checkpoint of any kind from its path, as named tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tersor.errors import InputError
from tersor.storage.checkpoint import (
    folder,
    gguf_file,
    names,
    onnx_file,
    quantized,
    safetensors_file,
    shards,
    torch_file,
)
from tersor.storage.checkpoint.source import Content, Source
from tersor.units import format_size

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")

_ORDINARY = 1024
"""Most bytes for each tensor that an ordinary file has beside the elements: name, shape, position.
"""


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    prefix: str | None = None,
    exact: bool = False,
) -> Source:
    """Open a checkpoint: a file, the index of a sharded one, or a folder that holds either.

    Files end in ``.safetensors``, ``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.gguf`` or ``.onnx``,
    indexes in ``.index.json``.

    Parameters
    ----------
    path
        The file or folder.
    key
        Which of several state dicts in a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file to take,
        such as ``"generator"``. By default the only one with weights is taken.
    prefix
        Take only tensors whose names start with this, such as ``"model."``, and drop it from the
        names. By default ``module.`` is dropped if all names start with it. Parts of names that
        `torch.compile` and FSDP add are always dropped.
    exact
        Give integers and 8-bit numbers as they are stored. By default those that have scales are
        dequantized to the weights that they stand for.

    Returns
    -------
    Source
        The named tensors, which are loaded one by one.

    Raises
    ------
    InputError
        If the checkpoint is missing, of another kind or damaged, or would run code when loaded; if
        it holds several state dicts and ``key`` names none of them.
    MissingExtraError
        If the package that reads such files is not installed.
    """
    content = names.plain(_read(Path(path), key), prefix)
    if not content.stored:
        raise InputError(f"{path} holds no tensors")
    meant = quantized.exact(content) if exact else quantized.meant(content)
    most = content.nbytes + _ORDINARY * (1 + len(content.stored))
    nbytes, notes = content.file_bytes, meant.notes
    if nbytes > most:
        nbytes = content.nbytes
        notes += (
            f"{format_size(nbytes)} of weights in {format_size(content.file_bytes)} of {path}; "
            "sizes and ratios refer to the weights",
        )
    found = Source(list(meant.stored), meant.load, nbytes, meant.aliases, meant.ignored)
    return replace(found, notes=notes, files=meant.files, view=meant.view)


def _read(path: Path, key: str | None) -> Content:
    """Return the tensors at a path, under their names in the files."""
    if path.is_dir():
        path = folder.checkpoint_in(path, [*_readers(key), ".json"])
    return _read_file(path, key)


def _read_file(path: Path, key: str | None = None) -> Content:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read; you lack the permission")
    suffix, readers = path.suffix.lower(), _readers(key)
    if suffix not in (*readers, ".json"):
        raise InputError(
            f"cannot read {path}: a checkpoint ends in {', '.join(readers)} or .index.json, "
            f"this file in {path.suffix or 'nothing'}"
        )
    if key is not None and suffix not in _PICKLED:
        raise InputError(
            f"the key {key!r} has no meaning for {path}: only {', '.join(_PICKLED)} files hold "
            "several state dicts; leave it out"
        )
    return shards.read(path, _read_file) if suffix == ".json" else readers[suffix](path)


def _readers(key: str | None) -> dict[str, Callable[[Path], Content]]:
    """Return the function that reads files of each ending."""
    readers: dict[str, Callable[[Path], Content]] = {".safetensors": safetensors_file.read}
    readers |= dict.fromkeys(_PICKLED, lambda path: torch_file.read(path, key))
    return readers | {".gguf": gguf_file.read, ".onnx": onnx_file.read}
