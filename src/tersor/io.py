"""Models and tensors <-> files: `save`, `load`, `open`, `load_state_dict`, `inspect`, `verify`."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from tersor.coding import records
from tersor.errors import InputError
from tersor.factors import Factors
from tersor.nn import HeldWeight, state
from tersor.nn.checks import check_model
from tersor.nn.fill import aliases_of, distinct, fill, some
from tersor.nn.source import source_of
from tersor.progress import Progress, silent
from tersor.storage import classify, container, dense_file
from tersor.storage.archive import Alias, Archive, Contents, Entry, Kept, as_tensor
from tersor.storage.atomic import check_writable, replacing
from tersor.storage.label import check_metadata
from tersor.storage.opened import OpenFile, file_bytes, open_file
from tersor.storage.summary import Report, summarize_file
from tersor.storage.verify import Verification
from tersor.storage.verify import verify as verify_file
from tersor.units import parse_size

Path = str | os.PathLike[str]
Model = TypeVar("Model", bound=nn.Module)


def save(
    model: nn.Module,
    path: Path,
    *,
    lossless: bool = False,
    metadata: Mapping[str, str] | None = None,
    content_hash: bool = False,
) -> Report:
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
    metadata
        What is to be said of the model, such as ``{"name": ..., "licence": ..., "source": ...}``:
        up to 64 keys of up to 255 bytes, all together at most 64 KiB. It comes on top of the size
        that `tersor.compress` was given.
    content_hash
        Store a SHA-256 of names, types, shapes and values of all dense tensors (34 bytes, and 4 for
        a checksum), which `tersor verify` compares. Files of equal tensors have equal ones.

    Returns
    -------
    Report
        What is in the file, and its size.

    Raises
    ------
    InputError
        If a tensor is of a type that cannot be stored or, unless lossless, a weight is NaN or
        infinite; if metadata is no text, or too much.
    OSError
        If the file cannot be written.
    """
    said = {} if metadata is None else metadata
    check_metadata(said)
    archive = archive_of(model, lossless=lossless)
    container.write(path, replace(archive, metadata=said, hashed=content_hash))
    with open_file(path, max_bytes=sys.maxsize) as file:
        return summarize_file(file.layout)


def archive_of(model: nn.Module, *, lossless: bool = False) -> Archive:
    """What `save` writes of a model."""
    check_model(model)
    source, values = source_of(model), state(model)
    entries = {
        name: _entry(name, value, source.aliases.get(name), lossless)
        for name, value in values.items()
    }
    return Archive(entries, source.nbytes)


def _entry(name: str, value: HeldWeight | Tensor, alias: str | None, lossless: bool) -> Entry:
    if alias is not None:
        return Entry(tuple(value.shape), value.dtype, Alias(alias))
    if isinstance(value, HeldWeight):
        return Entry(value.shape, value.dtype, records.encode(value.to_factors()))
    if lossless:
        return classify.keep_exactly(name, value)
    reason = classify.reason_to_keep(name, value)
    return classify.keep(name, value, Kept.LEFT_DENSE if reason is None else reason)


def load(
    path: Path,
    model: Model,
    *,
    strict: bool = True,
    assign: bool = False,
    max_bytes: str | int | None = None,
) -> Model:
    """Fill a model from a file; its weights become factors, as they were when saved.

    Weights of modules that cannot hold factors, such as those with a parametrization, get the
    dense weight. At the end every tensor of the file is compared with what the model holds.

    Parameters
    ----------
    path
        File that `save` or ``tersor compress`` wrote.
    model
        Model of the architecture that was saved, with any weights; changed in place. It may be on
        the meta device, without values: its tensors are then made on the CPU, with little memory
        beside the result.
    strict
        If False, tensors that only the file or only the model has are left alone, as in
        `torch.nn.Module.load_state_dict`.
    assign
        If True, tensors take the place of the model's, and have the data types that they have in
        the file, as in `torch.nn.Module.load_state_dict`.
    max_bytes
        Most that the dense tensors and the integers of the factors may take in memory, such as
        ``"8GB"`` (1 kB is 1000 bytes) or a number of bytes; by default 64 GiB, and for a tensor
        half of the memory that is left. A file that claims more is refused before anything is made
        of it.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    InputError
        If there is no such file, names or shapes of the model differ from those in it, or a tensor
        on the meta device is not in the file; the message lists them, and the model is unchanged.
        If the model's own code changes what is loaded, so that it does not hold it at the end.
    FileFormatError
        If the file is damaged, or needs more than `max_bytes`; the model is unchanged. Only what no
        checksum tells, as in a file that was made to deceive, is found when part of the model is
        filled already: tensors are decoded one at a time, so that little memory is needed beside
        the model and the file.
    """
    check_model(model)
    with open(path, max_bytes=max_bytes) as file:
        file.check_sections()
        check_match(file, model, strict)
        fill(model, file, assign=assign, strict=strict)
    return model


def open(path: Path, *, max_bytes: str | int | None = None) -> OpenFile:
    """Open a file, to decode single tensors of it; the rest is not read.

    Parameters
    ----------
    path
        File that `save` or ``tersor compress`` wrote.
    max_bytes
        As for `load`.

    Returns
    -------
    OpenFile
        A mapping of names to dense tensors, with ``shapes``, and ``factors(name)``.

    Raises
    ------
    InputError
        If there is no such file.
    FileFormatError
        If its header is damaged, or it needs more than `max_bytes`.

    Examples
    --------
    >>> with tersor.open("model.tersor") as file:  # doctest: +SKIP
    ...     weight = file["fc.weight"]
    """
    return open_file(path, max_bytes=_limit(max_bytes))


def check_match(contents: Contents, model: nn.Module, strict: bool) -> None:
    """Refuse contents that do not fit a model, in the sense of `load`."""
    found = _differences(contents, model)
    if not strict:
        found = {verb: names for verb, names in found.items() if verb not in (_LACKS, _HAS)}
    problems = [f"the model {verb} {some(names)}" for verb, names in found.items() if names]
    if problems:
        raise InputError(
            f"the file does not fit a {type(model).__name__}: {'; '.join(problems)}. Give the "
            "architecture that was saved, or strict=False to leave alone what only one of them has"
        )


_LACKS, _HAS = "lacks", "has beside those in the file"


def _differences(contents: Contents, model: nn.Module) -> dict[str, list[str]]:
    """Names by what is wrong with them, in words."""
    values, shapes = state(model), contents.shapes
    # A tied weight is there if it is there under any of its names.
    tied = aliases_of(values)
    common = [name for name in shapes if name in values]
    present = {tied.get(name, name) for name in common}
    return {
        _LACKS: [n for n in shapes if n not in values],
        _HAS: [n for n in values if n not in shapes and tied.get(n, n) not in present],
        "differs in": [
            f"{n} {shapes[n]} in the file, {tuple(values[n].shape)} in the model"
            for n in common
            if shapes[n] != tuple(values[n].shape)
        ],
        "ties what is not the same in the file:": [
            f"{first} and {other}"
            for first, others in distinct(tied, shapes).items()
            for other in others
            if not _same(contents, first, other)
        ],
        "holds factors, from another file, of what is dense in this one:": [
            n for n in common if isinstance(values[n], HeldWeight) and not contents.is_factored(n)
        ],
    }


def _same(contents: Contents, a: str, b: str) -> bool:
    """Whether two names stand for the same tensor."""
    return contents.original(a) == contents.original(b) or torch.equal(
        contents.tensor(a), contents.tensor(b)
    )


def load_state_dict(path: Path, *, max_bytes: str | int | None = None) -> dict[str, Tensor]:
    """Dense tensors of a file, of the names, shapes and types that they came with.

    Tied tensors share their memory.

    Parameters
    ----------
    max_bytes
        Most that the dense tensors and the integers of the factors may take in memory, such as
        ``"8GB"`` (1 kB is 1000 bytes) or a number of bytes; by default the memory that is left, at
        most 64 GiB. A file that claims more is refused before anything is made of it.

    Raises
    ------
    InputError
        If there is no such file.
    FileFormatError
        If the file is damaged, or needs more than `max_bytes`.
    """
    with open(path, max_bytes=max_bytes) as file:
        file.check_room()
        return dense_tensors(file)


def _limit(max_bytes: str | int | None) -> int | None:
    return None if max_bytes is None else parse_size(max_bytes)


def verify(
    path: Path,
    *,
    max_bytes: str | int | None = None,
    progress: Progress = silent,
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
    return verify_file(file_bytes(path), max_bytes=_limit(max_bytes), progress=progress)


def dense_tensors(contents: Contents) -> dict[str, Tensor]:
    """Dense tensors of a file, or of what will be one."""
    names = contents.shapes
    tensors = {name: as_tensor(value) for name, value in contents.stream(names)}
    return {name: tensors[contents.original(name)] for name in names}


def export_safetensors(
    path: Path, output: Path, *, max_bytes: str | int | None = None, progress: Progress = silent
) -> int:
    """Write the dense tensors of a file as safetensors, one by one; returns the bytes written.

    Tied tensors are written under each of their names, since safetensors knows no aliases. For
    ``max_bytes`` see `load_state_dict`; ``progress`` is called with the name of each tensor and the
    share of the work that is done, 0 to 1.

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
    with open(source, max_bytes=max_bytes) as file, replacing(target) as temporary:
        kinds = {f.name: dense_file.Kind(f.shape, f.dtype) for f in file.layout.fields}
        dense_file.write(temporary, kinds, _under_each_name(file, progress))
    return target.stat().st_size


def _under_each_name(file: OpenFile, progress: Progress) -> Iterator[tuple[str, Iterable[Tensor]]]:
    """Dense tensors in pieces, tied ones under each of their names, one after the other."""
    uses: dict[str, list[str]] = {}
    for name in file:
        uses.setdefault(file.original(name), []).append(name)
    for done, (original, value) in enumerate(file.stream(uses)):
        progress(original, done / len(uses))
        for name in uses[original]:
            yield name, value.pieces() if isinstance(value, Factors) else [value]


def inspect(path: Path, *, max_bytes: str | int | None = None) -> Report:
    """What a file holds: per tensor its shape, tile, rank, bytes and signal-to-noise ratio.

    For ``max_bytes`` see `load`.

    Raises
    ------
    InputError
        If there is no such file.
    FileFormatError
        If the header is damaged; the tensors are not read, which `verify` does.
    """
    with open(path, max_bytes=max_bytes) as file:
        return summarize_file(file.layout)
