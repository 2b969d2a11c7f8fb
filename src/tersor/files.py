"""Models and tensors <-> files: `save`, `load`, `load_state_dict`, `inspect`, `verify`."""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Callable
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from tersor.errors import InputError
from tersor.factors import Factors
from tersor.models import distinct, fill, source_of
from tersor.nn import state
from tersor.plan import classify
from tersor.plan.budget import parse_size
from tersor.plan.progress import silent
from tersor.storage import container, records
from tersor.storage.archive import Alias, Archive, Entry, Kept, Plain
from tersor.storage.atomic import check_writable, replacing
from tersor.storage.summary import Report, summarize
from tersor.storage.verify import Verification
from tersor.storage.verify import verify as verify_file

Path = str | os.PathLike[str]
Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, path: Path, *, lossless: bool = False) -> Report:
    """Write a model as one file.

    Factors are entropy-coded, and matrices and kernels without factors stored exactly. Biases and
    normalisation parameters are stored at 16 bits, to which `tersor.compress` has rounded them;
    training that changes them further is rounded here. The file takes the place of ``path`` only
    once it is complete.

    Parameters
    ----------
    model
        Model that `tersor.compress` has given factors, trained further or not, or any model.
    lossless
        Store every tensor without factors exactly, to the last bit.

    Returns
    -------
    Report
        What is in the file, and its size.

    Raises
    ------
    InputError
        If a tensor is of a type that cannot be stored or, unless lossless, a weight is NaN or
        infinite.
    OSError
        If the file cannot be written.
    """
    archive = archive_of(model, lossless=lossless)
    return summarize(archive, container.write(path, archive))


def archive_of(model: nn.Module, *, lossless: bool = False) -> Archive:
    """What `save` writes of a model."""
    source, values = source_of(model), state(model)
    entries = {
        name: _entry(name, value, source.aliases.get(name), lossless)
        for name, value in values.items()
    }
    return Archive(entries, source.nbytes)


def _entry(name: str, value: Factors | Tensor, alias: str | None, lossless: bool) -> Entry:
    if alias is not None:
        return Entry(tuple(value.shape), value.dtype, Alias(alias))
    if isinstance(value, Factors):
        return Entry(value.shape, value.dtype, records.encode(value))
    if lossless:
        return classify.keep_exactly(name, value)
    reason = classify.reason_to_keep(name, value)
    return classify.keep(name, value, Kept.LEFT_DENSE if reason is None else reason)


def load(
    path: Path, model: Model, *, strict: bool = True, max_bytes: str | int | None = None
) -> Model:
    """Fill a model from a file; its weights become factors, as they were when saved.

    Parameters
    ----------
    path
        File that `save` or ``tersor compress`` wrote.
    model
        Model of the architecture that was saved, with any weights; changed in place.
    strict
        If False, tensors that only the file or only the model has are left alone, as in
        `torch.nn.Module.load_state_dict`.
    max_bytes
        Most that the dense tensors and the integers of the factors may take in memory, such as
        ``"8GB"`` (1 kB is 1000 bytes) or a number of bytes; by default 64 GiB. A file that claims
        more is refused before anything is made of it.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    InputError
        If there is no such file, or names or shapes of the model differ from those in it; the
        message lists them, and the model is unchanged.
    FileFormatError
        If the file is damaged, or needs more than `max_bytes`.
    """
    archive = container.read(path, max_bytes=_limit(max_bytes))
    _check_match(archive, model, strict)
    fill(model, archive)
    return model


def _check_match(archive: Archive, model: nn.Module, strict: bool) -> None:
    found = _differences(archive, model)
    if not strict:
        found = {verb: names for verb, names in found.items() if verb not in (_LACKS, _HAS)}
    problems = [f"the model {verb} {_some(names)}" for verb, names in found.items() if names]
    if problems:
        raise InputError(
            f"the file does not fit a {type(model).__name__}: {'; '.join(problems)}. Give the "
            "architecture that was saved, or strict=False to leave alone what only one of them has"
        )


_LACKS, _HAS = "lacks", "has beside those in the file"


def _differences(archive: Archive, model: nn.Module) -> dict[str, list[str]]:
    """Names by what is wrong with them, in words."""
    values, entries = state(model), archive.entries
    # A tied weight is there if it is there under any of its names.
    tied = source_of(model).aliases
    present = {tied.get(name, name) for name in entries if name in values}
    common = [name for name in entries if name in values]
    stored = {name: entries[archive.original(name)].content for name in common}
    return {
        _LACKS: [n for n in entries if n not in values],
        _HAS: [n for n in values if n not in entries and tied.get(n, n) not in present],
        "differs in": [
            f"{n} {entries[n].shape} in the file, {tuple(values[n].shape)} in the model"
            for n in common
            if entries[n].shape != tuple(values[n].shape)
        ],
        "ties what is not the same in the file:": [
            f"{first} and {other}"
            for first, others in distinct(model, entries).items()
            for other in others
            if not _same(archive, first, other)
        ],
        "holds factors, from another file, of what is dense in this one:": [
            n for n in common if isinstance(stored[n], Plain) and isinstance(values[n], Factors)
        ],
    }


def _same(archive: Archive, a: str, b: str) -> bool:
    """Whether two entries hold the same tensor."""
    return archive.original(a) == archive.original(b) or torch.equal(
        archive.tensor(a), archive.tensor(b)
    )


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def load_state_dict(path: Path, *, max_bytes: str | int | None = None) -> dict[str, Tensor]:
    """Dense tensors of a file, of the names, shapes and types that they came with.

    Tied tensors share their memory.

    Parameters
    ----------
    max_bytes
        Most that the dense tensors and the integers of the factors may take in memory, such as
        ``"8GB"`` (1 kB is 1000 bytes) or a number of bytes; by default 64 GiB. A file that claims
        more is refused before anything is made of it.

    Raises
    ------
    InputError
        If there is no such file.
    FileFormatError
        If the file is damaged, or needs more than `max_bytes`.
    """
    return dense_tensors(container.read(path, max_bytes=_limit(max_bytes)))


def _limit(max_bytes: str | int | None) -> int:
    return container.MAX_BYTES if max_bytes is None else parse_size(max_bytes)


def verify(
    path: Path,
    *,
    max_bytes: str | int | None = None,
    progress: Callable[[str, float], None] = silent,
) -> Verification:
    """Check all of a file: header, checksums, and that every tensor can be decoded.

    Parameters
    ----------
    max_bytes
        As for `load_state_dict`; a file that needs more is reported as a problem.
    progress
        Called with what is being checked and the share of the work that is done, 0 to 1.

    Raises
    ------
    InputError
        If there is no such file.
    """
    with container.open_file(path) as file:
        return verify_file(file, max_bytes=_limit(max_bytes), progress=progress)


def dense_tensors(archive: Archive) -> dict[str, Tensor]:
    """Dense tensors of an archive."""
    tensors: dict[str, Tensor] = {}
    for name in archive.entries:
        original = archive.original(name)
        tensors[name] = tensors[original] if original in tensors else archive.tensor(name)
    return tensors


def export_safetensors(path: Path, output: Path, *, max_bytes: str | int | None = None) -> int:
    """Write the dense tensors of a file as safetensors; returns the bytes written.

    Tied tensors are written under each of their names, since safetensors knows no aliases. For
    ``max_bytes`` see `load_state_dict`.

    Raises
    ------
    InputError
        If there is no such file, or the output cannot be written there.
    FileFormatError
        If the file is damaged.
    OSError
        If writing fails.
    """
    source, target = pathlib.Path(path), pathlib.Path(output)
    check_writable(target, source)
    if target.suffix != ".safetensors":
        raise InputError(f"{target} is to be a safetensors file; give a name in .safetensors")
    archive = container.read(source, max_bytes=_limit(max_bytes))
    tensors = {name: tensor.contiguous() for name, tensor in dense_tensors(archive).items()}
    for name in archive.entries:
        if archive.original(name) != name:
            tensors[name] = tensors[name].clone()
    with replacing(target) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from None
    return target.stat().st_size


def inspect(path: Path) -> Report:
    """What a file holds: per tensor its shape, tile, rank, bytes and signal-to-noise ratio.

    Raises
    ------
    InputError
        If there is no such file.
    FileFormatError
        If the file is damaged.
    """
    return summarize(container.read(path), pathlib.Path(path).stat().st_size)
