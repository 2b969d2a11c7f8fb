# SPDX-License-Identifier: Apache-2.0
"""Read a checkpoint in several files, using the index that says which file holds which tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tersor.errors import InputError
from tersor.storage.checkpoint.source import Content

_LARGEST_INDEX = 1 << 28
"""Most bytes of an index. The index of a model of a trillion weights has a few million."""


def read(path: Path, read_file: Callable[[Path], Content]) -> Content:
    """Return the tensors that the index lists, from the files beside it.

    Parameters
    ----------
    path
        The index.
    read_file
        Reads one shard.

    Raises
    ------
    InputError
        If it is not an index, names files in other folders, or a file is missing or lacks a tensor.
    """
    shard_of = _weight_map(path)
    shards = {name: read_file(path.parent / name) for name in sorted({*shard_of.values()})}
    for name, shard in shard_of.items():
        if name not in shards[shard].stored:
            raise InputError(f"{shard} lacks the tensor {name!r} that {path} expects in it")
    pairs = [(name, shard) for shard, content in shards.items() for name in content.stored]
    listed = [(name, shard) for name, shard in pairs if shard_of.get(name) == shard]
    aliases: dict[str, str] = {}
    for content in shards.values():
        aliases |= {n: t for n, t in content.aliases.items() if n in shard_of and t in shard_of}
    return Content(
        {name: shards[shard].stored[name] for name, shard in listed},
        lambda name: shards[shard_of[name]].load(name),
        tuple(file for content in shards.values() for file in content.files),
        aliases,
        tuple(f"{name} in {shard}" for name, shard in pairs if shard_of.get(name) != shard),
        view=lambda name: shards[shard_of[name]].rows(name),
    )


def _weight_map(path: Path) -> dict[str, str]:
    """Return the file name of each tensor, after checking that all files are beside the index."""
    if path.stat().st_size > _LARGEST_INDEX:
        raise InputError(f"{path} is too large to be the index of a checkpoint")
    try:
        shard_of: dict[str, str] = json.loads(path.read_text())["weight_map"]
        outside = [name for name in shard_of.values() if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"{path} is not the index of a checkpoint: it needs a 'weight_map' of tensor "
            "names to file names"
        ) from None
    outside += [name for name in shard_of.values() if Path(name).suffix == path.suffix]
    if outside:
        raise InputError(
            f"{path} names {outside[0]!r}; the shards must be checkpoint files in the same folder"
        )
    return shard_of
