"""A file of which tensors are decoded when they are asked for: the bytes -> tensors.

Nothing in a file is code, and every field is checked before it is used: those of the header at
once, a section when a tensor in it is decoded.
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
from tersor.storage import kept, layout
from tersor.storage.archive import Contents
from tersor.storage.descriptors import FileBytes
from tersor.storage.header import Field
from tersor.storage.layout import Data


class OpenFile(Contents, Mapping[str, Tensor]):
    """A file as a mapping of names to dense tensors, each decoded when it is asked for.

    Nothing else of the file is read. A kept tensor may share a
    section of at most 1 MiB with others. Close it after use, or use it in a ``with`` statement.

    Parameters
    ----------
    data
        All bytes of the file.
    name
        Of the file, for messages.
    max_bytes
        Refuse a file whose dense tensors and factors would take more bytes than this. By default
        64 GiB, but no tensor more than the memory that is left, nor a header far larger than the
        file, which is allowed if 128 times as many bytes are given.

    Raises
    ------
    FileFormatError
        If it is not a valid tersor file, or is damaged; says how. What is wrong with a section is
        found when a tensor in it is decoded.
    """

    def __init__(self, data: Data, *, name: str = "", max_bytes: int | None = None) -> None:
        self._data, self._name, self._max_bytes = data, name, max_bytes
        with self._named():
            self.layout = layout.read(data, max_bytes)
        self._fields = {f.name: f for f in self.layout.fields}

    @property
    def source_bytes(self) -> int:
        """Size in bytes of the checkpoint or model that was compressed."""
        return self.layout.source_bytes

    @property
    def metadata(self) -> dict[str, str]:
        """What its maker says of the file; empty if nothing."""
        return dict(self.layout.label.metadata)

    @property
    def content_hash(self) -> str | None:
        """SHA-256 of names, types, shapes and values of its dense tensors, as the file claims.

        In hexadecimal digits; None if it claims none. `tersor.verify` compares it.
        """
        return self.layout.label.content_hash.hex() or None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the dense tensors, by name, in the order of the checkpoint."""
        return {name: field.shape for name, field in self._fields.items()}

    def __getitem__(self, name: str) -> Tensor:
        self._fields[name]  # a KeyError if there is none
        return self.tensor(name)

    def __contains__(self, name: object) -> bool:  # or Mapping would decode it to find out
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
        """Let go of the file; tensors that were decoded stay valid."""
        if isinstance(self._data, FileBytes):
            self._data.close()

    def original(self, name: str) -> str:
        """The name itself, or the one that it is an alias of."""
        detail = self._fields[name].detail
        return detail if isinstance(detail, str) else name

    def is_factored(self, name: str) -> bool:
        """Whether the tensor of that name is stored as factors."""
        return self.original(name) in self.layout.streams

    def factors(self, name: str) -> Factors:
        """Factors of the tensor of that name.

        Raises
        ------
        InputError
            If it is not there, or not factored.
        FileFormatError
            If its section is damaged.
        """
        value = self.value(name) if name in self and self.is_factored(name) else None
        if not isinstance(value, Factors):
            raise InputError(
                f"{name!r} is {'kept, not factored' if name in self else 'not in the file'}; "
                f"factored are: {', '.join(self.layout.streams) or 'none'}"
            )
        return value

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of the dense tensor of that name: part of an embedding.

        Of a large factored tensor only the slices that hold them are decoded, and the first, in
        which the codebook is; of another one all.

        Raises
        ------
        InputError
            If there is no such tensor, or there are no such rows.
        FileFormatError
            If its section is damaged.
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

    def value(self, name: str) -> Factors | Tensor:
        """Factors of that name if it is factored, else the tensor."""
        return next(self.stream([name]))[1]

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, Factors | Tensor]]:
        """Values of these names, in the order of the file, decoded in threads, few at a time.

        An alias is given as the tensor that it is an alias of, and each tensor once.
        """
        wanted = {self.original(name) for name in names}
        with self._named():
            factored = [f for f in self.layout.factored if f.name in wanted]
            jobs = ((f, position) for f in factored for position in range(f.slices))
            parts = ordered(self._decode, jobs, lambda job: job[0].factor_bytes // job[0].slices)
            for f in factored:
                yield f.name, _joined(f, list(islice(parts, f.slices)))
            plain = kept.decode(self.layout.plain, wanted, self._kept_section)
            yield from ((f.name, values.to(f.dtype)) for f, values in plain)

    def check_room(self) -> None:
        """Refuse to decode all tensors at once without room for them, unless a limit was given.

        Raises
        ------
        FileFormatError
            If they take more memory than is left.
        """
        with self._named():
            if self._max_bytes is None:
                layout.check_room(self.layout)

    def check_sections(self) -> None:
        """Compare all sections with their checksums.

        Raises
        ------
        FileFormatError
            At the first one that differs.
        """
        with self._named():
            for position in range(len(self.layout.stamps)):
                self.layout.section(self._data, position)

    def _decode(self, job: tuple[Field, int]) -> Part:
        field, position = job
        assert isinstance(field.detail, EncodedFactors)  # it is among the factored ones
        section = self.layout.section(self._data, self.layout.streams[field.name][position])
        return records.decode_slice(field.detail, field.shape, position, section)

    def _kept_section(self, group: int) -> bytes:
        return self.layout.section(self._data, self.layout.groups[group])

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Add the name of the file to what is wrong with it."""
        try:
            yield
        except FileFormatError as error:
            raise FileFormatError(f"{self._name}: {error}" if self._name else str(error)) from None


def _joined(field: Field, parts: list[Part]) -> Factors:
    assert isinstance(field.detail, EncodedFactors)
    return records.join(field.detail, field.shape, field.dtype, parts)


def open_file(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> OpenFile:
    """Open a file; an `InputError` if there is none. See `OpenFile`."""
    return OpenFile(file_bytes(path), name=str(Path(path)), max_bytes=max_bytes)


def file_bytes(path: str | os.PathLike[str]) -> FileBytes:
    """The bytes of a file, which are read when they are used; an `InputError` if there is none."""
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path} is {'a directory' if path.is_dir() else 'not there'}; "
            "give the path of a .tersor file"
        )
    return FileBytes(path)
