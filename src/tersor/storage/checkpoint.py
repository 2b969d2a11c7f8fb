"""Read a trained model's tensors, one at a time, from the files that hold them. Never unpickles."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tersor.errors import InputError
from tersor.storage.archive import Archive, Entry
from tersor.storage.dtypes import is_dense

_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "params")
"""Keys under which training scripts commonly put the tensors of a checkpoint."""


@dataclass(frozen=True)
class Source:
    """Named tensors that are loaded one by one.

    Parameters
    ----------
    names
        In the order in which they are to be given back.
    load
        Gives the tensor of a name.
    nbytes
        Size in bytes that ratios refer to: of the files, or of the tensors of a model in memory.
    aliases
        Names of tensors that are the same as another one, and the name of that one.
    ignored
        What else the checkpoint holds and is no tensor, or is not asked for.
    unchanged
        Names of tensors that must not be factored: buffers of a model.
    metadata, hashed
        Of the files that are made of them, as in `tersor.storage.archive.Archive`.
    """

    names: list[str]
    load: Callable[[str], Tensor]
    nbytes: int
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    unchanged: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)
    hashed: bool = False

    def archive(self, entries: Mapping[str, Entry]) -> Archive:
        """What is to be written when these are the entries of the tensors."""
        return Archive(entries, self.nbytes, self.metadata, self.hashed)


def open_checkpoint(path: str | os.PathLike[str]) -> Source:
    """Open a ``.safetensors``, ``.safetensors.index.json``, ``.pt``, ``.pth`` or ``.bin`` file.

    Raises
    ------
    InputError
        If it is missing, of another kind or damaged, or would run code when loaded.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a directory; give a checkpoint file, or the index of a sharded "
            "one (*.safetensors.index.json)"
        )
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read; you lack the permission")
    readers = {".safetensors": _open_safetensors, ".json": _open_shards}
    readers |= dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _open_torch)
    reader = readers.get(path.suffix.lower())
    if reader is None:
        endings = ", ".join(readers).replace(".json", ".safetensors.index.json")
        raise InputError(
            f"cannot read {path}: a checkpoint ends in {endings}, "
            f"this file in {path.suffix or 'nothing'}"
        )
    source = reader(path)
    if not source.names:
        raise InputError(f"{path} holds no tensors")
    return source


def _open_safetensors(path: Path) -> Source:
    try:
        with safe_open(path, framework="pt") as file:
            names: list[str] = list(file.keys())
    except SafetensorError as error:
        raise InputError(f"{path} is not a valid safetensors file: {error}") from None

    def load(name: str) -> Tensor:
        # Opened anew: pages of a file that stays mapped would add up to the whole of it in memory.
        try:
            with safe_open(path, framework="pt") as file:
                return cast(Tensor, file.get_tensor(name))
        except (SafetensorError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: tensor {name!r} cannot be read: {error}") from None

    return Source(names, load, path.stat().st_size)


def _open_shards(path: Path) -> Source:
    shard_of = _weight_map(path)
    shards = {name: open_checkpoint(path.parent / name) for name in sorted({*shard_of.values()})}
    held = {shard: set(source.names) for shard, source in shards.items()}
    for name, shard in shard_of.items():
        if name not in held[shard]:
            raise InputError(f"{shard} lacks the tensor {name!r} that {path} expects in it")
    pairs = [(name, shard) for shard, source in shards.items() for name in source.names]
    aliases: dict[str, str] = {}
    for source in shards.values():
        aliases |= {n: t for n, t in source.aliases.items() if n in shard_of and t in shard_of}
    return Source(
        [name for name, shard in pairs if shard_of.get(name) == shard],
        lambda name: shards[shard_of[name]].load(name),
        sum(source.nbytes for source in shards.values()),
        aliases,
        tuple(f"{name} in {shard}" for name, shard in pairs if shard_of.get(name) != shard),
    )


def _weight_map(path: Path) -> dict[str, str]:
    """File names by tensor name; only files beside the index."""
    try:
        shard_of: dict[str, str] = json.loads(path.read_text())["weight_map"]
        outside = [name for name in shard_of.values() if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"{path} is not a safetensors index: it needs a 'weight_map' of tensor "
            "names to file names"
        ) from None
    outside += [name for name in shard_of.values() if Path(name).suffix == path.suffix]
    if outside:
        raise InputError(
            f"{path} names {outside[0]!r}; the shards must be checkpoint files in the same folder"
        )
    return shard_of


def _open_torch(path: Path) -> Source:
    tensors, ignored = _tensors_of(_unpickle_weights(path))
    names = _without_prefix(list(tensors))
    by_name = dict(zip(names, tensors.values(), strict=True))
    return Source(names, by_name.__getitem__, path.stat().st_size, shared(by_name), ignored)


def _unpickle_weights(path: Path) -> Any:
    # Files of before torch 1.6 are not zip archives and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception:  # what torch raises here depends on which byte is wrong
        raise InputError(
            f"{path} is damaged, no PyTorch file, or holds more than tensors, which is never "
            "loaded since it could run code. Of a whole pickled model, save the weights: "
            "torch.save(model.state_dict(), path)"
        ) from None


def _tensors_of(content: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors of a state dict, perhaps nested in a training checkpoint; names of the rest."""
    ignored: list[str] = []
    while isinstance(content, Mapping):
        inner = next((k for k in _NESTED if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            tensors = {k: v.detach() for k, v in content.items() if isinstance(v, Tensor)}
            ignored += [str(k) for k in content if k not in tensors]
            named = {str(k): v for k, v in tensors.items()}
            if len(named) < len(tensors):
                raise InputError("two tensors of the checkpoint have the same name")
            return named, tuple(ignored)
        ignored += [str(k) for k in content if k != inner]
        content = content[inner]
    raise InputError(
        f"the checkpoint holds a {type(content).__name__}; a dictionary of tensors, "
        "as model.state_dict() gives, is needed"
    )


def _without_prefix(names: list[str]) -> list[str]:
    """Drop the ``module.`` that DataParallel puts before every name."""
    if names and all(name.startswith("module.") for name in names):
        return [name.removeprefix("module.") for name in names]
    return names


def shared(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are the very same memory as an earlier one, and that one's name."""
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if is_dense(tensor) and tensor.numel():
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if (original := first.setdefault(key, name)) != name:
                aliases[name] = original
    return aliases
