"""Integers <-> bytes, with the static models of `tersor.factorization.rate`.

The coder is constriction's asymmetric numeral system (Duda, 2013; Bamler, 2022) with a state of 64
bits, words of 32 and probabilities of 24. It is given the model's own integer frequencies: a
floating-point table of ``frequency - 1`` that totals ``2**24 - symbols`` is scaled by exactly one
and then raised by one per symbol, which leaves the frequencies as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import constriction
import numpy as np
from numpy.typing import NDArray

from tersor.errors import FileFormatError
from tersor.factorization.rate import EntropyModel

Matrix = NDArray[np.int32]


_ROWS_AT_ONCE = 64
"""Rows whose tables are made together: fast, and of little memory whatever a file claims."""


def _tables(model: EntropyModel) -> Iterator[constriction.stream.model.Categorical]:
    for start in range(0, len(model.zero), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        part = replace(model, zero=model.zero[rows], decay=model.decay[rows])
        for frequencies in part.frequencies():
            yield constriction.stream.model.Categorical((frequencies - 1.0), perfect=False)


def encode(matrices: Sequence[tuple[Matrix, EntropyModel]]) -> bytes:
    """Code integer matrices, each row under its row of the model, into one stream.

    The coder is a stack: what is decoded first is encoded last.
    """
    coder = constriction.stream.stack.AnsCoder()
    for matrix, model in reversed(matrices):
        if model.largest == 0:
            continue
        for row, table in reversed(list(zip(matrix, _tables(model), strict=True))):
            coder.encode_reverse(np.ascontiguousarray(row + model.largest, np.int32), table)
    words: NDArray[np.uint32] = coder.get_compressed()
    return words.astype("<u4").tobytes()


def decode(payload: bytes, models: Sequence[tuple[EntropyModel, int]]) -> list[Matrix]:
    """Decode the matrices of a stream from their models and numbers of columns.

    Raises
    ------
    FileFormatError
        If the stream is not what these models would have coded.
    """
    if len(payload) % 4:
        raise FileFormatError(f"coded integers take a multiple of 4 bytes, got {len(payload)}")
    words = np.frombuffer(payload, "<u4").astype(np.uint32)
    try:
        coder = constriction.stream.stack.AnsCoder(words)
    except ValueError as error:
        raise FileFormatError(f"coded integers are damaged: {error}") from None
    matrices = []
    for model, columns in models:
        matrix = np.zeros((len(model.zero), columns), np.int32)
        if model.largest and columns:
            for row, table in zip(matrix, _tables(model), strict=True):
                row[:] = coder.decode(table, columns)
            matrix -= model.largest
        matrices.append(matrix)
    if not coder.is_empty():
        raise FileFormatError("coded integers are damaged: data left over after the last one")
    return matrices
