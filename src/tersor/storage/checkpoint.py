"""Read a trained model's tensors, one at a time, from the files that hold them. Never unpickles."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tersor.errors import InputError

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
        What else the checkpoint holds and is no tensor.
    """

    names: list[str]
    load: Callable[[str], Tensor]
    nbytes: int
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


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
    readers = {".safetensors": _open_safetensors, ".json": _open_shards}
    readers |= dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _open_torch)
    reader = readers.get(path.suffix)
    if reader is None:
        raise InputError(
            f"cannot read {path}: a checkpoint ends in {', '.join(readers)}, "
            f"this file in {path.suffix or 'nothing'}"
        )
    source = reader(path)
    if not source.names:
        raise InputError(f"{path} holds no tensors")
    return source


def _open_safetensors(path: Path) -> Source:
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(f"{path} is not a valid safetensors file: {error}") from None
    names: list[str] = list(file.keys())  # type: ignore[no-untyped-call]
    return Source(names, file.get_tensor, path.stat().st_size)


def _open_shards(path: Path) -> Source:
    try:
        shard_of = json.loads(path.read_text())["weight_map"]
        files = {name: path.parent / Path(name).name for name in sorted(set(shard_of.values()))}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path} is not a safetensors index: it needs a 'weight_map' of tensor "
            "names to file names"
        ) from None
    shards = {name: open_checkpoint(file) for name, file in files.items()}
    for name, shard in shard_of.items():
        if name not in shards[shard].names:
            raise InputError(f"{files[shard]} lacks the tensor {name!r} that {path} expects in it")
    total = sum(shard.nbytes for shard in shards.values())
    return Source(list(shard_of), lambda name: shards[shard_of[name]].load(name), total)


def _open_torch(path: Path) -> Source:
    tensors, ignored = _tensors_of(_unpickle_weights(path))
    names = _without_prefix(list(tensors))
    by_name = dict(zip(names, tensors.values(), strict=True))
    return Source(names, by_name.__getitem__, path.stat().st_size, shared(by_name), ignored)


def _unpickle_weights(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # files of before torch 1.6 are not zip archives and cannot be mapped
        pass
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises here depends on which byte is wrong
        raise _refused(path, error) from None


def _refused(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be read as tensors only ({str(error).splitlines()[0][:120]}). If it "
        "holds a whole pickled model, save its weights: torch.save(model.state_dict(), path)"
    )


def _tensors_of(content: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors of a state dict, perhaps nested in a training checkpoint; names of the rest."""
    ignored: list[str] = []
    while isinstance(content, Mapping):
        inner = next((k for k in _NESTED if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
            ignored += [str(k) for k in content if str(k) not in tensors]
            return tensors, tuple(ignored)
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
        if tensor.numel():
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if (original := first.setdefault(key, name)) != name:
                aliases[name] = original
    return aliases
