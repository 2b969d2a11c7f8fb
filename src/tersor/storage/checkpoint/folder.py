# SPDX-License-Identifier: Apache-2.0
"""Find the checkpoint in a folder that Hugging Face's libraries wrote."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tersor.errors import InputError

_USUAL = [
    f"{name}{ending}"
    for name in ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin")
    for ending in ("", ".index.json")
]
"""Names of checkpoints, in the order in which those libraries look for them."""


def checkpoint_in(folder: Path, suffixes: Collection[str]) -> Path:
    """Return the checkpoint file of a folder, or the index of a sharded one.

    Parameters
    ----------
    folder
        The folder.
    suffixes
        Endings of checkpoint files, such as ``".pt"``.

    Raises
    ------
    InputError
        If the folder has no checkpoint, or several and none with a usual name.
    """
    usual = [folder / name for name in _USUAL if (folder / name).is_file()]
    if usual:
        return usual[0]
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in suffixes and f.is_file())
    indexes = [file for file in files if file.name.endswith(".index.json")]
    found = indexes or [file for file in files if file.suffix.lower() != ".json"]
    if len(found) != 1:
        held = ", ".join(file.name for file in found[:20]) or "no checkpoint"
        raise InputError(
            f"{folder} is a directory with {held}; give the checkpoint file itself, or the index "
            "of a sharded one (*.index.json)"
        )
    return found[0]
