"""Integers <-> bytes: the adaptive coder of docs/format.md, which is native."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tersor import _native
from tersor.errors import FileFormatError
from tersor.factorization.rate import TRELLISES, starting_level
from tersor.tiling import coding_order, natural_order


@dataclass(frozen=True)
class Coding:
    """What a decoder must know of a stream, besides the shapes of its matrices.

    Parameters
    ----------
    states
        States of the trellis of the latent; 1 if it has none.
    codebook_start, latent_start
        Levels of magnitude that coding begins with, a byte each.
    """

    states: int
    codebook_start: int
    latent_start: int


def trellis_of(ordered: Tensor, rows: int) -> int:
    """States of a trellis that can reach these int16 integers, in coding order; 1 if none can."""
    matrix = ordered.numpy()
    return next((s for s in TRELLISES if _native.reachable(matrix, rows, s)), 1)


def encode(codebook: Tensor, latent: Tensor, rows: int) -> tuple[Coding, bytes]:
    """Code both factors, int16, into one stream: the codebook column by column, then the latent.

    Parameters
    ----------
    codebook, latent
        C (d, k) and Z (k, n), magnitudes up to `tersor.factorization.rate.LARGEST`.
    rows
        Weight rows, of which n is a multiple.
    """
    columns, ordered = codebook.T.contiguous(), coding_order(latent, rows)
    states = trellis_of(ordered, rows)
    coding = Coding(states, starting_level(columns), starting_level(ordered, states))
    payload = _native.encode(
        columns.numpy(), coding.codebook_start, ordered.numpy(), rows, states, coding.latent_start
    )
    return coding, payload


def decode(
    payload: bytes, coding: Coding, d: int, k: int, n: int, rows: int
) -> tuple[Tensor, Tensor]:
    """Codebook (d, k) and latent (k, n), int16, of a stream.

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
