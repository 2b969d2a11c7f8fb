# SPDX-License-Identifier: Apache-2.0
"""Open a file and decode each tensor when it is asked for.

Nothing in a file is code, and every field is checked before it is used: fields of the header when
the file is opened, a section when a tensor in it is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from torch import Tensor

from tersor.coding import records
from tersor.coding.records import EncodedFactors, Part
from tersor.errors import FileFormatError, InputError
from tersor.factors import Factors
from tersor.parallel import ordered
from tersor.storage import layout, model_folder, unfactored
from tersor.storage.archive import Contents
from tersor.storage.descriptors import FileBytes
from tersor.storage.header import Field
from tersor.storage.layout import Data


class OpenFile(Contents, Mapping[str, Tensor]):
    """A file as a mapping of names to dense tensors, each decoded when it is asked for.

    The rest of the file is not read. An unfactored tensor may share a section of at most 1 MiB with
    others. Close the file after use, or use it in a ``with`` statement.

    Parameters
    ----------
    data
        All bytes of the file.
    name
        Name of the file, for error messages.
    max_bytes
        Refuse a file whose dense tensors and factors would take more bytes than this. By default
        the limit is 64 GiB. The default also refuses a tensor that cannot be decoded in the
        available memory, and a header that is far larger than the file. Such a header is allowed if
        ``max_bytes`` is at least 128 times its size.

    Raises
    ------
    FileFormatError
        If the data is not a valid tersor file or is damaged; the message says how. Damage in a
        section is found when a tensor in it is decoded.

    Examples
    --------
    >>> model = torch.nn.Linear(64, 10)
    >>> report = tersor.compress(model, ratio=4)
    >>> report = tersor.save(model, "model.tersor")
    >>> with tersor.open("model.tersor") as file:
    ...     print(file.shapes, file.factors("weight").quantized, file.rows("weight", 2, 5).shape)
    {'weight': (10, 64), 'bias': (10,)} True torch.Size([3, 64])
    """

    def __init__(self, data: Data, *, name: str = "", max_bytes: int | None = None) -> None:
        self._data, self._name, self._max_bytes = data, name, max_bytes
        with self._named():
            self.layout = layout.read(data, max_bytes)
        self._fields = {f.name: f for f in self.layout.fields}

    @property
    def source_bytes(self) -> int:
        """Return the size in bytes of the checkpoint or model that was compressed."""
        return self.layout.source_bytes

    @property
    def metadata(self) -> dict[str, str]:
        """Return the metadata that the file's author stored, by key; empty if there is none."""
        return dict(self.layout.label.metadata)

    @property
    def content_hash(self) -> str | None:
        """Return the SHA-256 of all dense tensors that the file states, as hexadecimal digits.

        It covers names, types, shapes and values. It is None if the file has none. ``tersor
        verify`` compares it with the tensors.
        """
        return self.layout.label.content_hash.hex() or None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the dense tensors, by name, in the order of the checkpoint."""
        return {name: field.shape for name, field in self._fields.items()}

    def __getitem__(self, name: str) -> Tensor:
        self._fields[name]  # raises KeyError if there is no such tensor
        return self.tensor(name)

    def __contains__(self, name: object) -> bool:  # Mapping's own method would decode the tensor
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; tensors that were decoded stay valid."""
        if isinstance(self._data, FileBytes):
            self._data.close()

    def original(self, name: str) -> str:
        """Return the name of the tensor that this name is an alias of, or the name itself.

        Parameters
        ----------
        name
            Name of a tensor.

        Returns
        -------
        str
            The name under which the tensor is stored.

        Raises
        ------
        KeyError
            If there is no such tensor.
        """
        detail = self._fields[name].detail
        return detail if isinstance(detail, str) else name

    def is_factored(self, name: str) -> bool:
        """Return whether the tensor of that name is stored as factors.

        Parameters
        ----------
        name
            Name of a tensor.

        Returns
        -------
        bool
            False if it is stored unfactored.

        Raises
        ------
        KeyError
            If there is no such tensor.
        """
        return self.original(name) in self.layout.streams

    def factors(self, name: str) -> Factors:
        """Return the factors of the tensor of that name.

        Parameters
        ----------
        name
            Name of a factored tensor.

        Returns
        -------
        Factors
            The codebook, the latent and the scale.

        Raises
        ------
        InputError
            If there is no such tensor, or it is not factored.
        FileFormatError
            If one of its sections is damaged.
        """
        value = self.value(name) if name in self and self.is_factored(name) else None
        if not isinstance(value, Factors):
            raise InputError(
                f"{name!r} is {'not factored' if name in self else 'not in the file'}; "
                f"factored are: {', '.join(self.layout.streams) or 'none'}"
            )
        return value

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop`` of a dense tensor, such as part of an embedding.

        If a factored tensor has several slices, only the slices that hold these rows are decoded,
        and the first slice, which holds the codebook. Any other tensor is decoded as a whole.

        Parameters
        ----------
        name
            Name of a tensor.
        start, stop
            First row, and the row after the last one; ``0 <= start <= stop <= shape[0]``.

        Returns
        -------
        Tensor
            Of shape ``(stop - start, *shape[1:])``.

        Raises
        ------
        InputError
            If there is no such tensor, or there are no such rows.
        FileFormatError
            If one of its sections is damaged.
        """
        shape = self.shapes.get(name, ())
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise InputError(f"no rows {start} to {stop} of {name!r}, which has the shape {shape}")
        field = self._fields[self.original(name)]
        if field.slices < 2 or start == stop:
            return self.tensor(name)[start:stop]
        with self._named():
            return self._rows(field, start, stop)

    def _rows(self, field: Field, start: int, stop: int) -> Tensor:
        assert isinstance(field.detail, EncodedFactors)  # it has slices
        length, last = field.detail.coding.slice_rows, field.slices - 1
        first, final = min(start // length, last), min((stop - 1) // length, last)
        wanted = range(first, final + 1)
        parts = list(ordered(self._decode, [(field, i) for i in sorted({0, *wanted})]))
        found = [(parts[0][0], latent) for _, latent in parts[-len(wanted) :]]
        end = field.shape[0] if final == last else (final + 1) * length
        shape = (end - first * length, *field.shape[1:])
        weight = records.join(field.detail, shape, field.dtype, found).recompose()
        return weight[start - first * length : stop - first * length]

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield the dense tensor of a factored one, a few rows at a time, in the memory of a slice.

        Parameters
        ----------
        name
            Name of a factored tensor.

        Yields
        ------
        Tensor
            The next rows.
        """
        field = self._fields[self.original(name)]
        assert isinstance(field.detail, EncodedFactors)  # it is factored
        with self._named():
            parts = ordered(self._decode, ((field, i) for i in range(field.slices)))
            yield from records.pieces(field.detail, field.shape, field.dtype, parts)

    def value(self, name: str) -> Factors | Tensor:
        """Return the factors of that name if the tensor is factored, else the tensor.

        Parameters
        ----------
        name
            Name of a tensor.

        Returns
        -------
        Factors or Tensor
            The factors, or the dense tensor.

        Raises
        ------
        KeyError
            If there is no such tensor.
        FileFormatError
            If one of its sections is damaged.
        """
        return next(self.stream([name]))[1]

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, Factors | Tensor]]:
        """Yield the values of these names in the order of the file; threads decode a few at a time.

        An alias is given under the name of its original tensor, and each tensor once.

        Parameters
        ----------
        names
            Names of tensors of the file, in any order.

        Yields
        ------
        tuple
            The name, and the factors of a factored tensor or the tensor itself.

        Raises
        ------
        FileFormatError
            If a section is damaged.
        """
        wanted = {self.original(name) for name in names}
        with self._named():
            factored = [f for f in self.layout.factored if f.name in wanted]
            jobs = ((f, position) for f in factored for position in range(f.slices))
            parts = ordered(self._decode, jobs, lambda job: job[0].factor_bytes // job[0].slices)
            for f in factored:
                yield f.name, _joined(f, list(islice(parts, f.slices)))
            plain = unfactored.decode(self.layout.plain, wanted, self._unfactored_section)
            yield from ((f.name, values.to(f.dtype)) for f, values in plain)

    def check_room(self) -> None:
        """Refuse a file whose tensors, all at once, do not fit the available memory.

        If ``max_bytes`` was given, nothing is checked.

        Raises
        ------
        FileFormatError
            If they take more memory than is available.
        """
        with self._named():
            if self._max_bytes is None:
                layout.check_room(self.layout)

    def check_sections(self) -> None:
        """Compare all sections with their checksums.

        Raises
        ------
        FileFormatError
            At the first section that differs.
        """
        with self._named():
            for position in range(len(self.layout.stamps)):
                self.layout.section(self._data, position)

    def _decode(self, job: tuple[Field, int]) -> Part:
        field, position = job
        assert isinstance(field.detail, EncodedFactors)  # it is among the factored ones
        section = self.layout.section(self._data, self.layout.streams[field.name][position])
        return records.decode_slice(field.detail, field.shape, position, section)

    def _unfactored_section(self, group: int) -> bytes:
        return self.layout.section(self._data, self.layout.groups[group])

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Add the name of the file to the message of a `FileFormatError`."""
        try:
            yield
        except FileFormatError as error:
            raise FileFormatError(f"{self._name}: {error}" if self._name else str(error)) from None


def _joined(field: Field, parts: list[Part]) -> Factors:
    assert isinstance(field.detail, EncodedFactors)
    return records.join(field.detail, field.shape, field.dtype, parts)


def open_file(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> OpenFile:
    """Open a tersor file.

    Parameters
    ----------
    path
        The file.
    max_bytes
        Limit of the decoded size, see `OpenFile`.

    Raises
    ------
    InputError
        If there is no such file.
    FileFormatError
        If it is not a valid tersor file.
    """
    return OpenFile(file_bytes(path), name=str(Path(path)), max_bytes=max_bytes)


def file_bytes(path: str | os.PathLike[str]) -> FileBytes:
    """Return the bytes of a tersor file, which are read from the disk when they are indexed.

    Parameters
    ----------
    path
        The file, or a folder of Hugging Face with such a file as its weights, or those weights.

    Raises
    ------
    InputError
        If there is no such file.
    FileFormatError
        If it is a safetensors file without a tersor file in it.
    """
    path = Path(path)
    if model_folder.is_compressed(path):
        path = path / model_folder.WEIGHTS
    if not path.is_file():
        raise InputError(
            f"{path} is {'a directory' if path.is_dir() else 'not there'}; "
            "give the path of a .tersor file"
        )
    part = model_folder.embedded(path) if path.suffix == ".safetensors" else None
    return FileBytes(path, part)
