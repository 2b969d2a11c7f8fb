# SPDX-License-Identifier: Apache-2.0
"""Encode integers as bytes and decode them, with the native adaptive coder of docs/format.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tersor import _native
from tersor.coding.rate import TRELLISES, starting_level
from tersor.errors import FileFormatError
from tersor.parallel import ordered as in_order
from tersor.tiling import Rows, coding_order, cut, natural_order, slices


@dataclass(frozen=True)
class Coding:
    """The settings of a stream that a decoder needs besides the shapes of the matrices.

    Parameters
    ----------
    states
        States of the trellis of the latent; 1 if it has none.
    codebook_start, latent_start
        Levels of the expected magnitude at the start of coding, see
        `tersor.coding.rate.starting_level`; 0 to 255.
    slice_rows
        Weight rows of each slice of the latent but the last, which has all rows that are left; 0 if
        there is only one slice.
    """

    states: int
    codebook_start: int
    latent_start: int
    slice_rows: int = 0


def reachable(ordered: Tensor, rows: Rows, states: int) -> bool:
    """Return whether a path through the trellis gives these int16 integers, in coding order."""
    parts = (part.contiguous().numpy() for part in cut(ordered, rows))
    return all(_native.reachable(part, 1, states) for part in parts)


def trellis_of(ordered: Tensor, rows: Rows) -> int:
    """Return the states of the largest trellis that can reach these integers; 1 if none can.

    The integers are int16, in coding order.
    """
    return next((s for s in TRELLISES if reachable(ordered, rows, s)), 1)


def encode(
    codebook: Tensor, latent: Tensor, rows: int, slice_rows: int = 0
) -> tuple[Coding, tuple[bytes, ...]]:
    """Return both factors entropy-coded: the codebook column by column, then the latent.

    Each slice of the latent has its own stream. The stream of the first slice begins with the
    codebook.

    Parameters
    ----------
    codebook, latent
        C (d, k) and Z (k, n), int16, of magnitudes up to `tersor.coding.rate.LARGEST`.
    rows
        Number of weight rows; n is a multiple of it.
    slice_rows
        Weight rows of a slice; 0 (default): all rows are one slice.

    Returns
    -------
    tuple
        Settings for the decoder, and the stream of each slice.
    """
    lengths, columns = slices(rows, slice_rows), codebook.T.contiguous()
    ordered = [coding_order(part, r) for part, r in zip(cut(latent, lengths), lengths, strict=True)]
    states = next((s for s in TRELLISES if all(reachable(z, 1, s) for z in ordered)), 1)
    starts = starting_level(columns), starting_level(latent, states)
    coding = Coding(states, *starts, slice_rows)

    def work(position: int) -> bytes:
        first = columns if position == 0 else columns[:, :0]
        z = ordered[position].numpy()
        return _native.encode(
            first.contiguous().numpy(), starts[0], z, lengths[position], states, starts[1]
        )

    return coding, tuple(in_order(work, range(len(lengths))))


def decode(
    payload: bytes, coding: Coding, d: int, k: int, n: int, rows: int
) -> tuple[Tensor, Tensor]:
    """Return the codebook and the latent of a slice, decoded from its stream.

    Parameters
    ----------
    payload
        Stream of the slice.
    coding
        Settings that `encode` returned.
    d
        Tile size; 0 if the stream has no codebook, as for all slices but the first.
    k
        Rank.
    n
        Columns of the slice.
    rows
        Weight rows of the slice; n is a multiple of it.

    Returns
    -------
    tuple
        Codebook (d, k) and latent (k, n), int16.

    Raises
    ------
    FileFormatError
        If `encode` would not have written this stream for any factors.
    """
    columns, ordered = np.zeros((k, d), np.int16), np.zeros((k, n), np.int16)
    try:
        used = _native.decode(
            payload,
            columns,
            coding.codebook_start,
            ordered,
            rows,
            coding.states,
            coding.latent_start,
        )
    except ValueError as error:
        raise FileFormatError(f"coded integers are damaged: {error}") from None
    used = used if k else 0  # with rank 0 no byte encodes an integer, though the coder reads some
    if used < len(payload) or payload.endswith(b"\0"):
        raise FileFormatError("coded integers are damaged: data left over after the last one")
    codebook = torch.from_numpy(columns).T.contiguous()
    latent = natural_order(torch.from_numpy(ordered), rows)
    return codebook, latent
