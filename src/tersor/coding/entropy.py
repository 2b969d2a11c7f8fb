"""Integers <-> bytes: the adaptive coder of docs/format.md, which is native."""

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
    """What a decoder must know of a stream, besides the shapes of its matrices.

    Parameters
    ----------
    states
        States of the trellis of the latent; 1 if it has none.
    codebook_start, latent_start
        Levels of magnitude that coding begins with, a byte each.
    slice_rows
        Weight rows of each slice of the latent, but for the last, which takes what is left; 0 if
        there is only one.
    """

    states: int
    codebook_start: int
    latent_start: int
    slice_rows: int = 0


def reachable(ordered: Tensor, rows: Rows, states: int) -> bool:
    """Whether a trellis can reach these int16 integers, in coding order."""
    parts = (part.contiguous().numpy() for part in cut(ordered, rows))
    return all(_native.reachable(part, 1, states) for part in parts)


def trellis_of(ordered: Tensor, rows: Rows) -> int:
    """States of a trellis that can reach these int16 integers, in coding order; 1 if none can."""
    return next((s for s in TRELLISES if reachable(ordered, rows, s)), 1)


def encode(
    codebook: Tensor, latent: Tensor, rows: int, slice_rows: int = 0
) -> tuple[Coding, tuple[bytes, ...]]:
    """Code both factors, int16: the codebook column by column, then the latent.

    Each slice of the latent is a stream of its own, but for the first, which follows the codebook.

    Parameters
    ----------
    codebook, latent
        C (d, k) and Z (k, n), magnitudes up to `tersor.coding.rate.LARGEST`.
    rows
        Weight rows, of which n is a multiple.
    slice_rows
        Weight rows of a slice; 0: all of them.
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
    """Codebook (d, k) and latent (k, n), int16, of the stream of a slice of so many weight rows.

    With d = 0 the codebook is not in it.

    Raises
    ------
    FileFormatError
        If the stream is not what `encode` would have written.
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
    used = used if k else 0  # the coder has looked at bytes that nothing is made of
    if used < len(payload) or payload.endswith(b"\0"):
        raise FileFormatError("coded integers are damaged: data left over after the last one")
    codebook = torch.from_numpy(columns).T.contiguous()
    latent = natural_order(torch.from_numpy(ordered), rows)
    return codebook, latent
