# SPDX-License-Identifier: Apache-2.0
"""Take coded weights from a file as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tersor.coding.rate import TRELLISES
from tersor.coding.records import EncodedFactors
from tersor.storage.opened import OpenFile, file_bytes


@dataclass(frozen=True)
class Coded:
    """A factored weight as the file has it.

    Parameters
    ----------
    shape
        Shape of the dense weight.
    encoded
        Its factors, with the bytes of all slices.
    """

    shape: tuple[int, ...]
    encoded: EncodedFactors

    @property
    def trellis(self) -> int:
        """Return the number of the trellis in the format."""
        return (1, *sorted(TRELLISES)).index(self.encoded.coding.states)


def coded_weights(path: Path, names: Iterable[str]) -> dict[str, Coded]:
    """Return those of the named tensors that a file has as factors, by name.

    Parameters
    ----------
    path
        The file.
    names
        Names of tensors.

    Raises
    ------
    FileFormatError
        If the file is damaged.
    """
    data = file_bytes(path)
    with OpenFile(data, name=str(path)) as file:
        fields = {f.name: f for f in file.layout.factored}
        found = {}
        for name in (n for n in dict.fromkeys(names) if n in file and file.is_factored(n)):
            field = fields[file.original(name)]
            assert isinstance(field.detail, EncodedFactors)  # it is among the factored ones
            positions = file.layout.streams[field.name]
            streams = tuple(file.layout.section(data, i) for i in positions)
            found[name] = Coded(field.shape, replace(field.detail, streams=streams))
    return found
