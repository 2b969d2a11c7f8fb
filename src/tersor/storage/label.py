# SPDX-License-Identifier: Apache-2.0
"""Read and write the label of a file: metadata of its author, and a hash of its content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tersor.errors import FileFormatError, InputError
from tersor.factors import Factors
from tersor.storage import dtypes
from tersor.storage.archive import Contents
from tersor.storage.cursor import Reader, Writer
from tersor.storage.planes import elements

MOST_ENTRIES, LONGEST_KEY, MOST_BYTES = 64, 255, 1 << 16
"""Limits of metadata: number of entries; bytes of a key; bytes of all keys and values."""

OUTPUT_ERROR = "output-error"
"""Key of the relative error of the model's outputs on held-out batches, if it was measured."""

_METADATA, _CONTENT_HASH = 2, 4
"""Tags of the parts of a label. A reader may skip unknown even tags, but must know odd ones."""

_HASH_BYTES = 32
_WHAT = "what follows the sections"


@dataclass(frozen=True)
class Label:
    """The content after the sections of a file.

    Parameters
    ----------
    metadata
        Keys and values, in the order in which the author gave them.
    content_hash
        Hash that `content_hash` returns; empty if the file has none.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    content_hash: bytes = b""


def parse_metadata(texts: Iterable[str]) -> dict[str, str]:
    """Return metadata parsed from texts such as ``"licence=MIT"``.

    Parameters
    ----------
    texts
        One ``key=value`` each.

    Raises
    ------
    InputError
        If a text has no ``=``, a key comes twice, or a file cannot hold the metadata.
    """
    metadata: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key in metadata:
            raise InputError(f"metadata is given as key=text, each key once; got {text!r}")
        metadata[key] = value
    check_metadata(metadata)
    return metadata


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Refuse metadata that a file cannot hold.

    Raises
    ------
    InputError
        If there are too many entries, a key is empty or too long, a key or value is not valid text,
        or all of them take too many bytes.
    """
    for text in (text for pair in metadata.items() for text in pair):
        if not isinstance(text, str):
            raise InputError(f"metadata must be text, got {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{text!r} in the metadata is not valid Unicode") from None
    if problem := _flaw(metadata):
        raise InputError(f"this metadata cannot be stored: {problem}")


def _flaw(metadata: Mapping[str, str]) -> str | None:
    """Return why a file cannot hold the metadata, or None if it can."""
    if len(metadata) > MOST_ENTRIES:
        return f"there are {len(metadata)} entries, at most {MOST_ENTRIES} are allowed"
    total = 0
    for key, value in metadata.items():
        if not 1 <= len(key.encode()) <= LONGEST_KEY:
            return f"the key {key!r} has {len(key.encode())} bytes, not 1 to {LONGEST_KEY}"
        total += len(key.encode()) + len(value.encode())
    return None if total <= MOST_BYTES else f"it has {total} bytes, more than {MOST_BYTES}"


def output_error_text(error: float) -> str:
    """Return a measured relative error of outputs as text of a fixed length, for metadata.

    The length is fixed so that the size of the file is known before the error is measured.
    """
    return f"{min(max(error, 1e-99), 9e99):.2e}"


def output_error(metadata: Mapping[str, str]) -> float | None:
    """Return the relative error of outputs that the metadata hold, or None."""
    text = metadata.get(OUTPUT_ERROR, "")
    return float(text) if re.fullmatch(r"\d\.\d\de[+-]\d\d", text, re.ASCII) else None


def write(label: Label) -> bytes:
    """Return the bytes of a label; none if the label is empty."""
    out = Writer()
    if label.metadata:
        texts = Writer()
        for text in (text for pair in label.metadata.items() for text in pair):
            texts.text(text.encode())
        out.integer(_METADATA)
        out.text(bytes(texts.data))
    if label.content_hash:
        out.integer(_CONTENT_HASH)
        out.text(label.content_hash)
    return bytes(out.data)


def size(metadata: Mapping[str, str], hashed: bool) -> int:
    """Return the number of bytes that `write` gives.

    Parameters
    ----------
    metadata
        Keys and values of the label.
    hashed
        Whether the label holds a content hash.
    """
    return len(write(Label(metadata, bytes(_HASH_BYTES) if hashed else b"")))


def read(data: bytes) -> Label:
    """Parse and check the bytes that `write` gave.

    Raises
    ------
    FileFormatError
        If something is missing or invalid, or has an unknown odd tag.
    """
    reader = Reader(data, what=_WHAT)
    metadata: dict[str, str] = {}
    content_hash, before = b"", 0
    while reader.left:
        tag, content = reader.integer(), reader.text()
        if tag <= before:
            raise FileFormatError(f"tag {tag} follows tag {before}")
        before = tag
        if tag == _METADATA:
            metadata = _read_metadata(Reader(content, what=_WHAT))
        elif tag == _CONTENT_HASH:
            content_hash = content
            if len(content) != _HASH_BYTES:
                raise FileFormatError(f"a content hash of {len(content)} bytes")
        elif tag % 2:
            raise FileFormatError(f"unknown tag {tag}: reading the file takes a later release")
    return Label(metadata, content_hash)


def _read_metadata(reader: Reader) -> dict[str, str]:
    metadata: dict[str, str] = {}
    while reader.left:
        try:
            key, value = reader.text().decode(), reader.text().decode()
        except UnicodeDecodeError:
            raise FileFormatError("metadata is not UTF-8") from None
        if key in metadata:
            raise FileFormatError(f"metadata has {key!r} twice")
        metadata[key] = value
    if problem := _flaw(metadata):
        raise FileFormatError(f"invalid metadata: {problem}")
    return metadata


def content_hash(contents: Contents) -> bytes:
    """Return the SHA-256 of names, types, shapes and values of all dense tensors.

    It does not depend on how the tensors are stored, or on their order in the file.
    """
    digests, types = {}, {}
    for name, value in contents.stream(contents.shapes):
        digest = hashlib.sha256()
        for piece in value.pieces() if isinstance(value, Factors) else [value]:
            words = elements(piece, exact=True).words
            digest.update(words.astype(words.dtype.newbyteorder("<"), copy=False).data)
        digests[name], types[name] = digest.digest(), dtypes.CODES.index(value.dtype)
    out = Writer()
    for name in sorted(contents.shapes, key=str.encode):
        original, shape = contents.original(name), contents.shapes[name]
        out.text(name.encode())
        out.raw(bytes([types[original], len(shape)]))
        out.integers(shape)
        out.raw(digests[original])
    return hashlib.sha256(out.data).digest()
