# SPDX-License-Identifier: Apache-2.0
"""Save models to files, load them, and open, inspect, verify and export files."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn

from tersor.coding import records
from tersor.errors import InputError
from tersor.factors import Factors
from tersor.nn import HeldWeight, state
from tersor.nn.checks import check_model
from tersor.nn.fill import fill
from tersor.nn.source import source_of
from tersor.progress import Progress, silent
from tersor.storage import classify, container, dense_file
from tersor.storage.archive import Alias, Archive, Contents, Entry, Reason, as_tensor
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
    """Save a model as one file, which appears at ``path`` only when it is complete.

    Factors are entropy-coded. Matrices and kernels without factors are stored exactly. Biases and
    normalisation parameters are stored at 16 bits: `tersor.compress` has rounded them to these, and
    if training has changed them since, `save` rounds them again.

    Parameters
    ----------
    model
        Model with factors from `tersor.compress`, trained further or not, or any other model.
    path
        File to write. An existing file is replaced.
    lossless
        If True, store every tensor without factors exactly, to the last bit. Default False.
    metadata
        Texts that describe the model, such as ``{"name": ..., "licence": ..., "source": ...}``: up
        to 64 keys of up to 255 bytes, all together at most 64 KiB. They are not counted in the
        budget of `tersor.compress`. By default none.
    content_hash
        If True, store a SHA-256 of the names, types, shapes and values of all dense tensors (34
        bytes, and 4 for a checksum). `tersor verify` compares it. Files of equal tensors have equal
        hashes. Default False.

    Returns
    -------
    Report
        Contents and size of the file.

    Raises
    ------
    InputError
        If the type of a tensor cannot be stored; if a weight is NaN or infinite, unless lossless;
        if the metadata is not text or is too large.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> report = tersor.save(torch.nn.Linear(64, 64), "model.tersor", metadata={"name": "layer"})
    >>> report.metadata["name"], [tensor.name for tensor in report.tensors]
    ('layer', ['weight', 'bias'])
    """
    said = {} if metadata is None else metadata
    check_metadata(said)
    archive = archive_of(model, lossless=lossless)
    container.write(path, replace(archive, metadata=said, hashed=content_hash))
    with open_file(path, max_bytes=sys.maxsize) as file:
        return summarize_file(file.layout)


def encode_weight(weight: HeldWeight) -> records.EncodedFactors:
    """Return the factors of a weight, entropy-coded."""
    return records.encode(weight.to_factors())


def archive_of(
    model: nn.Module,
    *,
    lossless: bool = False,
    encode: Callable[[HeldWeight], records.EncodedFactors] = encode_weight,
) -> Archive:
    """Return the contents that `save` writes for a model, which is not changed.

    Parameters
    ----------
    model, lossless
        As for `save`.
    encode
        Function that encodes a factored weight.
    """
    check_model(model)
    source, entries = source_of(model), dict[str, Entry]()
    for name, value in state(model).items():
        shape = tuple(value.shape)
        if name in source.aliases:
            entries[name] = Entry(shape, value.dtype, Alias(source.aliases[name]))
        elif isinstance(value, HeldWeight):
            entries[name] = Entry(shape, value.dtype, encode(value))
        else:
            entries[name] = _entry(name, value, lossless)
    return Archive(entries, source.nbytes)


def _entry(name: str, value: Tensor, lossless: bool) -> Entry:
    if lossless:
        return classify.keep_exactly(name, value)
    reason = classify.reason_to_keep(name, value)
    return classify.keep(name, value, Reason.LEFT_DENSE if reason is None else reason)


def load(
    path: Path,
    model: Model,
    *,
    strict: bool = True,
    assign: bool = False,
    max_bytes: str | int | None = None,
) -> Model:
    """Load a file into a model: its weights become factors again, as they were when saved.

    A module that cannot hold factors, such as one with a parametrization, gets the dense weight. At
    the end every tensor of the file is compared with the tensor that the model holds.

    Parameters
    ----------
    path
        File that `save` or ``tersor compress`` wrote.
    model
        Model of the saved architecture, with any weights; changed in place. It may be on the meta
        device, without values: its tensors are then created on the CPU, with little memory beside
        the result.
    strict
        If False, tensors that only the file or only the model has are ignored, as in
        `torch.nn.Module.load_state_dict`. Default True.
    assign
        If True, the tensors of the file replace those of the model and keep their data types, as in
        `torch.nn.Module.load_state_dict`. Default False.
    max_bytes
        Limit for the memory of the dense tensors and the integers of the factors, such as ``"8GB"``
        (1 kB is 1000 bytes) or a number of bytes; by default 64 GiB, and for one tensor half of the
        free memory. A file that needs more is refused before any tensor is decoded.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    InputError
        If there is no such file; if names or shapes in the model and the file differ, or a tensor
        on the meta device is not in the file: the message lists them, and the model is unchanged.
        If the model's own code changes loaded values, so that the model does not hold the values of
        the file at the end.
    FileFormatError
        If the file is damaged, or needs more than `max_bytes`; the model is unchanged. Damage with
        valid checksums, as in a file that was made to deceive, is found only when part of the model
        is filled: tensors are decoded one at a time, to need little memory beside the model and the
        file.

    Examples
    --------
    >>> report = tersor.save(torch.nn.Linear(64, 64), "model.tersor")
    >>> model = tersor.load("model.tersor", torch.nn.Linear(64, 64))
    """
    check_model(model)
    with open(path, max_bytes=max_bytes) as file:
        file.check_sections()
        fill(model, file, assign=assign, strict=strict)
    return model


def open(path: Path, *, max_bytes: str | int | None = None) -> OpenFile:
    """Open a file, to decode single tensors of it without reading the others.

    Parameters
    ----------
    path
        File that `save` or ``tersor compress`` wrote.
    max_bytes
        Limit for memory, as for `load`.

    Returns
    -------
    OpenFile
        A mapping of names to dense tensors, with ``shapes`` and ``factors(name)``.

    Raises
    ------
    InputError
        If there is no such file.
    FileFormatError
        If the header is damaged, or the file needs more than `max_bytes`.

    Examples
    --------
    >>> report = tersor.save(torch.nn.Linear(64, 10), "model.tersor")
    >>> with tersor.open("model.tersor") as file:
    ...     file["weight"].shape
    torch.Size([10, 64])
    """
    return open_file(path, max_bytes=_limit(max_bytes))


def load_state_dict(path: Path, *, max_bytes: str | int | None = None) -> dict[str, Tensor]:
    """Return the dense tensors of a file, with the names, shapes and types of the saved model.

    Tied tensors share their memory.

    Parameters
    ----------
    path
        File that `save` or ``tersor compress`` wrote.
    max_bytes
        Limit for memory, as for `load`; by default the free memory, at most 64 GiB.

    Returns
    -------
    dict
        Dense tensors by name, on the CPU.

    Raises
    ------
    InputError
        If there is no such file.
    FileFormatError
        If the file is damaged, or needs more than `max_bytes`.

    Examples
    --------
    >>> report = tersor.save(torch.nn.Linear(64, 10), "model.tersor")
    >>> {name: tensor.shape for name, tensor in tersor.load_state_dict("model.tersor").items()}
    {'weight': torch.Size([10, 64]), 'bias': torch.Size([10])}
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
    """Check all of a file: its header, its checksums, and that every tensor can be decoded.

    Parameters
    ----------
    path
        File to check.
    max_bytes
        Limit for memory, as for `load_state_dict`; a file that needs more is reported as a problem.
    progress
        Function that is called with the name of the current check and the finished share, 0 to 1.

    Returns
    -------
    Verification
        Problems that were found.

    Raises
    ------
    InputError
        If there is no such file.
    """
    return verify_file(file_bytes(path), max_bytes=_limit(max_bytes), progress=progress)


def dense_tensors(contents: Contents) -> dict[str, Tensor]:
    """Return the dense tensors of contents by name; tied tensors share their memory."""
    names = contents.shapes
    tensors = {name: as_tensor(value) for name, value in contents.stream(names)}
    return {name: tensors[contents.original(name)] for name in names}


def export_safetensors(
    path: Path, output: Path, *, max_bytes: str | int | None = None, progress: Progress = silent
) -> int:
    """Write the dense tensors of a file as a safetensors file, one tensor at a time.

    Tied tensors are written under each of their names, since safetensors has no aliases.

    Parameters
    ----------
    path
        File that `save` or ``tersor compress`` wrote.
    output
        File to write, with a name in ``.safetensors``.
    max_bytes
        Limit for memory, as for `load_state_dict`.
    progress
        Function that is called with the name of each tensor and the finished share, 0 to 1.

    Returns
    -------
    int
        Bytes of the output file.

    Raises
    ------
    InputError
        If there is no such file, or the output has another suffix or cannot be written there.
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
    """Yield each name and the pieces of its dense tensor; a tied tensor under all its names."""
    uses: dict[str, list[str]] = {}
    for name in file:
        uses.setdefault(file.original(name), []).append(name)
    streams = file.layout.streams
    sliced = [name for name in uses if len(streams.get(name, ())) > 1]
    for done, original in enumerate(sliced):  # the others are decoded in threads, as a whole
        progress(original, done / len(uses))
        for name in uses[original]:
            yield name, file.pieces(original)
    others = file.stream(uses.keys() - set(sliced))
    for done, (original, value) in enumerate(others, start=len(sliced)):
        progress(original, done / len(uses))
        for name in uses[original]:
            yield name, value.pieces() if isinstance(value, Factors) else [value]


def inspect(path: Path, *, max_bytes: str | int | None = None) -> Report:
    """Return the contents of a file: shape, tile size, rank, bytes and SNR of each tensor.

    Only the header is read; `verify` also reads the tensors.

    Parameters
    ----------
    path
        File that `save` or ``tersor compress`` wrote.
    max_bytes
        Limit for memory, as for `load`.

    Returns
    -------
    Report
        Summary of each tensor, and the sizes.

    Raises
    ------
    InputError
        If there is no such file.
    FileFormatError
        If the header is damaged, or the file needs more than `max_bytes`.

    Examples
    --------
    >>> model = torch.nn.Linear(64, 64)
    >>> report = tersor.compress(model, ratio=8)
    >>> tersor.save(model, "model.tersor").nbytes == tersor.inspect("model.tersor").nbytes
    True
    """
    with open(path, max_bytes=max_bytes) as file:
        return summarize_file(file.layout)
