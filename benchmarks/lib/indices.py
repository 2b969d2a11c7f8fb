# SPDX-License-Identifier: Apache-2.0
"""Files in which weights may also be tiles from a codebook, at indices, for the baselines.

Such a file is one of ours, in which these weights are zeros, with a section for them behind it:
numbers of bytes, then for each weight, in the order of the model, its shape and a stream. Codebooks
are coded by our adaptive coder, indices by a range coder (rANS, Duda, 2013) with static
frequencies, a byte for each codeword.
"""

from __future__ import annotations

import math
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import tersor
from tersor.coding import entropy as coder
from tersor.factors import Factors
from tersor.nn import insert_factors
from tersor.storage.atomic import replacing
from tersor.tiling import Tiling

_HEAD = struct.Struct("<HHfBBBI")
"""Tile size, codewords, scale, the three numbers of the codebook's coding, its bytes."""

_TOTAL, _LEAST = 1 << 16, 1 << 16
"""Sum of all frequencies; least state of the coder, which gives bytes out above 256 times it."""


@dataclass(frozen=True)
class Indexed:
    """A weight as codewords at indices.

    Parameters
    ----------
    tiling
        How the weight is cut into tiles.
    codebook
        int16 (k, d).
    labels
        int64 (n,).
    scale
        What the codewords are multiplied by.
    """

    tiling: Tiling
    codebook: Tensor
    labels: Tensor
    scale: float

    def recompose(self) -> Tensor:
        """The dense weight."""
        return self.tiling.join((self.codebook.float() * self.scale)[self.labels].T)


def entropy(labels: Tensor, k: int) -> float:
    """Bits of an index."""
    shares = torch.bincount(labels, minlength=k).double() / len(labels)
    shares = shares[shares > 0]
    return float(-(shares * shares.log2()).sum())


def encode(weight: Indexed) -> bytes:
    """Bytes of a weight in the file."""
    k, d = weight.codebook.shape
    nothing = torch.zeros(k, 0, dtype=torch.int16)
    coding, (payload,) = coder.encode(weight.codebook.T.contiguous(), nothing, 1)
    head = _HEAD.pack(
        d, k, weight.scale, coding.states, coding.codebook_start, coding.latent_start, len(payload)
    )
    counts = torch.bincount(weight.labels, minlength=k).numpy()
    table = np.ceil(255 * counts / max(1, counts.max())).astype(np.uint8)
    return head + payload + table.tobytes() + _encoded(weight.labels.tolist(), _frequencies(table))


def decode(data: bytes, shape: tuple[int, ...]) -> Indexed:
    """The weight that `encode` had."""
    d, k, scale, states, start, latent_start, size = _HEAD.unpack_from(data)
    payload, rest = data[_HEAD.size : _HEAD.size + size], data[_HEAD.size + size :]
    codebook, _ = coder.decode(payload, coder.Coding(states, start, latent_start, 0), d, k, 0, 1)
    tiling, table = Tiling(shape, d), np.frombuffer(rest[:k], np.uint8)
    labels = _decoded(rest[k:], _frequencies(table), tiling.count)
    return Indexed(tiling, codebook.T.contiguous(), torch.tensor(labels), scale)


def _frequencies(table: np.ndarray) -> list[int]:
    """Whole numbers in proportion to a table, of the sum that the coder needs; none lost."""
    total = max(1, int(table.sum()))
    found = [max(1, int(n) * _TOTAL // total) if n else 0 for n in table]
    found[int(np.argmax(found))] += _TOTAL - sum(found)
    return found


def _encoded(labels: list[int], frequencies: list[int]) -> bytes:
    starts = np.concatenate([[0], np.cumsum(frequencies)]).tolist()
    state, out = _LEAST, bytearray()
    for label in reversed(labels):
        frequency = frequencies[label]
        while state >= 256 * (_LEAST // _TOTAL) * frequency:
            out.append(state & 255)
            state >>= 8
        state = state // frequency * _TOTAL + state % frequency + starts[label]
    return state.to_bytes(4, "little") + bytes(reversed(out))


def _decoded(data: bytes, frequencies: list[int], count: int) -> list[int]:
    starts = np.concatenate([[0], np.cumsum(frequencies)])
    symbols = np.repeat(np.arange(len(frequencies)), frequencies).tolist()
    state, position, labels = int.from_bytes(data[:4], "little"), 4, []
    for _ in range(count):
        slot = state % _TOTAL
        label = symbols[slot]
        state = frequencies[label] * (state // _TOTAL) + slot - int(starts[label])
        while state < _LEAST and position < len(data):
            state, position = state << 8 | data[position], position + 1
        labels.append(label)
    return labels


def write(dense: nn.Module, weights: Mapping[str, Factors | Indexed], path: Path) -> None:
    """Write a model, which takes the factors given; indices stand behind the file of the rest."""
    zeros = {n: _zeros(w.tiling.shape) for n, w in weights.items() if isinstance(w, Indexed)}
    insert_factors(
        dense, {n: w if isinstance(w, Factors) else zeros[n] for n, w in weights.items()}
    )
    with replacing(path) as temporary:
        tersor.save(dense, temporary)
        if not zeros:
            return
        ours = temporary.read_bytes()
        streams = [encode(weights[name]) for name in sorted(zeros)]
        sizes = struct.pack(f"<{len(streams) + 1}I", len(ours), *map(len, streams))
        temporary.write_bytes(b"".join([ours, *streams, sizes, bytes([len(streams)])]))


def _zeros(shape: tuple[int, ...]) -> Factors:
    none = torch.zeros(1, 0, dtype=torch.int16)
    return Factors(none, torch.zeros(0, math.prod(shape), dtype=torch.int16), 1.0, shape)


def read(path: Path, dense: nn.Module) -> nn.Module:
    """A dense model of the architecture, with the weights of a file with indices."""
    data = path.read_bytes()
    count = data[-1]
    ours, *sizes = struct.unpack_from(f"<{count + 1}I", data, len(data) - 1 - 4 * (count + 1))
    with tempfile.TemporaryDirectory() as folder:
        front = Path(folder) / "model.tersor"
        front.write_bytes(data[:ours])
        state = tersor.load_state_dict(front)
    names = sorted(n for n, t in state.items() if t.ndim > 1 and not t.any())
    for name, size in zip(names, sizes, strict=True):
        state[name] = decode(data[ours : ours + size], tuple(state[name].shape)).recompose()
        ours += size
    dense.load_state_dict(state, strict=False)
    return dense
