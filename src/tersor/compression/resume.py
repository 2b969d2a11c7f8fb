# SPDX-License-Identifier: Apache-2.0
"""Store the results of attempts so that an interrupted run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from tersor.calibration.calibrate import Calibration
from tersor.coding.entropy import Coding
from tersor.coding.records import EncodedFactors
from tersor.compression.fill import Version
from tersor.factorization.tiles import Choice
from tersor.storage import container, dtypes
from tersor.storage.checkpoint import Source, StoredTensor
from tersor.storage.journal import Journal
from tersor.storage.planes import elements
from tersor.tiling import row_blocks
from tersor.version import __version__

Result = TypeVar("Result")


def identity(
    source: Source, calibration: Calibration | None, options: Sequence[object]
) -> dict[str, str]:
    """Return everything that the results depend on, as texts by the names that users know.

    The input is identified by a digest of its contents, not by names or dates of files.

    Parameters
    ----------
    source
        Source of the tensors.
    calibration
        Calibration that is used, or None.
    options
        Options that the results depend on; they can be written as JSON.

    Returns
    -------
    dict
        Digests of the input and the calibration, the options as JSON, and the versions.

    Raises
    ------
    InputError
        If a tensor cannot be stored.
    """
    tensors = blake2b(digest_size=16)
    for name in source.names:
        tensor = source.rows(name)
        if isinstance(tensor, Tensor):
            dtypes.check(name, tensor)
        _update(tensors, name, tensor)
    return {
        "the input": tensors.hexdigest(),
        "the calibration": _digest(calibration),
        "the options": json.dumps(options),
        "the version": f"{__version__}, torch {torch.__version__}, format {container.VERSION}",
    }


def _digest(calibration: Calibration | None) -> str:
    values = blake2b(digest_size=16)
    for field in fields(calibration) if calibration is not None else ():
        content = getattr(calibration, field.name)
        named = content if isinstance(content, Mapping) else {"": content}
        for name, value in named.items():
            _update(values, f"{field.name} {name}", value)
    return values.hexdigest()


def _update(digest: Any, name: str, value: object) -> None:
    if isinstance(value, Tensor | StoredTensor):
        digest.update(repr(f"{name} {tuple(value.shape)} {value.dtype}").encode())
        for block in row_blocks(value):
            digest.update(elements(block, exact=True).words.data)
    else:
        digest.update(repr((name, value)).encode())


@dataclass(frozen=True)
class Codec(Generic[Result]):
    """Converts results to bytes and back, without any loss.

    Parameters
    ----------
    encode
        Function that returns the bytes of a result.
    decode
        Function that returns the result of bytes.
    """

    encode: Callable[[Result], bytes]
    decode: Callable[[bytes], Result]


def recalled(
    journal: Journal | None,
    codec: Codec[Result],
    key: object,
    make: Callable[[], Result],
    holds: Callable[[Result], bool],
) -> Result:
    """Return the result that the journal has for a key, or make, store and return a new one.

    Parameters
    ----------
    journal
        The journal; without one the result is always made.
    codec
        Conversion of results to bytes and back.
    key
        Key whose ``repr`` identifies the result.
    make
        Function that makes a new result.
    holds
        Function that returns whether a stored result is valid.

    Returns
    -------
    object
        A valid stored result, or a new one.
    """
    if journal is None:
        return make()
    known = journal.get(repr(key))
    if known is not None:
        with suppress(Exception):  # a damaged result of any kind is made again
            if holds(result := codec.decode(known)):
                return result
    result = make()
    journal.put(repr(key), codec.encode(result))
    return result


def _encode_choice(choice: Choice) -> bytes:
    spectrum = choice.spectrum.tolist()
    return json.dumps([choice.tile, spectrum, choice.tiles, choice.nbytes]).encode()


def _decode_choice(data: bytes) -> Choice:
    tile, spectrum, tiles, nbytes = json.loads(data)
    return Choice(tile, np.array(spectrum, np.float64), tiles, nbytes)


def _encode_version(version: Version[EncodedFactors]) -> bytes:
    content, coding = version.content, version.content.coding
    numbers = [content.tile, content.scale, content.rank, content.snr]
    parameters = [coding.states, coding.codebook_start, coding.latent_start, coding.slice_rows]
    sizes = list(map(len, content.streams))
    head = json.dumps([version.nbytes, version.error, numbers, parameters, sizes])
    return b"\n".join([head.encode(), b"".join(content.streams)])


def _decode_version(data: bytes) -> Version[EncodedFactors]:
    head, _, coded = data.partition(b"\n")
    nbytes, error, (tile, scale, rank, snr), parameters, sizes = json.loads(head)
    ends = list(accumulate(sizes, initial=0))
    streams = tuple(coded[start:end] for start, end in pairwise(ends))
    content = EncodedFactors(tile, scale, rank, Coding(*parameters), streams, snr)
    return Version(nbytes, error, content)


CHOICES = Codec(_encode_choice, _decode_choice)
VERSIONS = Codec(_encode_version, _decode_version)
