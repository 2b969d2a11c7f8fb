# SPDX-License-Identifier: Apache-2.0
"""Prepare a model for an export: a checked file, a dense copy with its values, a folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

from tersor.errors import InputError, explained
from tersor.io import load
from tersor.nn import FactoredWeight
from tersor.nn.restore import restore_dense
from tersor.storage.atomic import replacing
from tersor.storage.opened import open_file

PathLike = str | os.PathLike[str]


def holds_factors(model: nn.Module) -> bool:
    """Return whether a model has weights to store in a small file."""
    return any(isinstance(module, FactoredWeight) for module in model.modules())


@contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Make a folder, and remove it if the work in it fails and leaves nothing.

    Raises
    ------
    InputError
        If the path is a file, or its parent does not exist.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; give the name of a folder to write")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; create it first")
    made = not path.exists()
    path.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if made and not any(path.iterdir()):
            path.rmdir()
        raise


@contextmanager
def replacing_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield temporary files that replace all paths when the context ends."""
    with ExitStack() as stack:
        yield [stack.enter_context(replacing(path)) for path in paths]


@contextmanager
def without_shortcuts() -> Iterator[None]:
    """Let transformer layers of torch compute by ordinary operations."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def checked(path: PathLike) -> Path:
    """Return the path of a file after checking its header and checksums.

    Raises
    ------
    FileFormatError
        If the file is damaged.
    """
    with open_file(path) as opened:
        opened.check_sections()
    return Path(path)


def dense_copy(model: nn.Module, stored: Path) -> nn.Module:
    """Return a dense copy of a model, on the CPU, with the values of a file.

    Parameters
    ----------
    model
        The model, which is not changed.
    stored
        The file.

    Raises
    ------
    InputError
        If the model cannot be copied.
    """
    with explained("copying the model", "it has to work with copy.deepcopy"):
        plain = copy.deepcopy(model).cpu()
    load(stored, plain, assign=True)
    restore_dense(plain)
    return plain.eval().requires_grad_(False)
