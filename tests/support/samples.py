# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints, archives and what generates random ones, for many tests."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from tersor.coding import records
from tersor.factors import Factors
from tersor.storage import container, dtypes
from tersor.storage.archive import Alias, Archive, Entry, Plain, Reason
from tersor.storage.checkpoint import Source
from tersor.storage.header import Field
from tersor.storage.opened import OpenFile


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_state(seed: int = 0) -> dict[str, Tensor]:
    """Tensors of a small convolutional network, with one of every kind that is not factored."""
    draw = generator(seed)
    return {
        "conv.weight": torch.randn(8, 6, 3, 3, generator=draw) * 0.1,
        "conv.bias": torch.randn(8, generator=draw),
        "norm.num_batches_tracked": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "head.weight": torch.randn(10, 40, generator=draw).double(),
        "head.scale": torch.tensor(0.5, dtype=torch.float16),
    }


def write_small(folder: Path, name: str = "model.safetensors") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(small_state(), path)
    else:
        torch.save(small_state(), path)
    return path


class Net(nn.Module):
    """Convolution, normalisation, a buffer that is a matrix, and a head tied to an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.embed = nn.Embedding(20, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("positions", torch.linspace(-1, 1, 320).reshape(20, 16).sin())

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.conv(x)).mean((2, 3))
        return self.head(hidden + self.embed.weight.mean(0) + self.positions.mean(0))


def make_net(seed: int = 0, kind: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(seed)
    model = kind().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def bits(tensor: Tensor) -> bytes:
    """Shape, type and every bit of a tensor."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {tensor.dtype} ".encode() + raw


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return {n: bits(t) for n, t in a.items()} == {n: bits(t) for n, t in b.items()}


def to_file_bytes(archive: Archive) -> bytes:
    return b"".join(container.to_bytes(archive))


def from_file_bytes(data: bytes) -> Archive:
    """The archive that a file was made from."""
    file = OpenFile(data)
    found = file.layout
    streams = {n: [found.section(data, i) for i in s] for n, s in found.streams.items()}

    def entry(field: Field) -> Entry:
        if isinstance(field.detail, str):
            return Entry(field.shape, field.dtype, Alias(field.detail))
        if isinstance(field.detail, Reason):
            values = file[field.name].to(field.stored_dtype)
            return Entry(field.shape, field.dtype, Plain(values, field.detail))
        content = replace(field.detail, streams=tuple(streams[field.name]))
        return Entry(field.shape, field.dtype, content)

    entries = {f.name: entry(f) for f in found.fields}
    return Archive(entries, file.source_bytes, file.metadata, file.content_hash is not None)


def random_factors(
    shape: tuple[int, ...], tile: int, rank: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Factors:
    draw = generator(seed)
    columns = shape[0] * -(-math.prod(shape[1:]) // tile)
    codebook = torch.randint(-9, 10, (tile, rank), generator=draw, dtype=torch.int16)
    latent = (torch.randn(rank, columns, generator=draw) * 2).to(torch.int16)
    return Factors(codebook, latent, 2.0**-7, shape, dtype)


def small_archive() -> Archive:
    """One entry of each kind."""
    weight = random_factors((6, 10), 4, 3)
    return Archive(
        {
            "layer.weight": Entry((6, 10), torch.float32, records.encode(weight, 12.5)),
            "layer.bias": plain(torch.arange(4.0), Reason.VECTOR, rounded=True),
            "layer.steps": plain(torch.tensor([3, -1]), Reason.NOT_FLOAT),
            "tied.weight": Entry((6, 10), torch.float32, Alias("layer.weight")),
        },
        source_bytes=600,
    )


def plain(tensor: Tensor, reason: Reason, *, rounded: bool = False) -> Entry:
    values = tensor.bfloat16() if rounded else tensor
    return Entry(tuple(tensor.shape), tensor.dtype, Plain(values, reason))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Tensors of every type and up to four axes, some empty; of any bits."""
    dtype = draw(st.sampled_from(list(dtypes.NAMES)))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = math.prod(shape) * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    raw = torch.tensor(list(data), dtype=torch.uint8)
    if dtype == torch.bool:
        return (raw % 2).bool().reshape(shape)
    return raw.view(dtype).reshape(shape)


@st.composite
def weights(draw: st.DrawFn) -> Entry:
    """Factored entries of any tile, rank and floating-point type."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    tile = draw(st.integers(1, math.prod(shape[1:])))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    rank, seed = draw(st.integers(0, 5)), draw(st.integers(0, 99))
    factors = random_factors(shape, tile, rank, seed, dtype)
    snr = draw(st.sampled_from([math.nan, 0.0, -1.25, 40.5]))
    return Entry(shape, dtype, records.encode(factors, snr))


@st.composite
def archives(draw: st.DrawFn) -> Archive:
    """Archives of a few entries of all kinds, under any names."""
    names = draw(st.lists(st.text(max_size=12), unique=True, max_size=9))
    entries: dict[str, Entry] = {}
    for name in names:
        originals = [n for n, e in entries.items() if not isinstance(e.content, Alias)]
        kind = draw(st.sampled_from(["exact", "rounded", "factors", "alias"]))
        if kind == "alias" and originals:
            target = draw(st.sampled_from(originals))
            entries[name] = Entry(entries[target].shape, entries[target].dtype, Alias(target))
        elif kind == "factors":
            entries[name] = draw(weights())
        else:
            tensor = draw(tensors())
            rounded = kind == "rounded" and tensor.dtype in (torch.float32, torch.float64)
            entries[name] = plain(tensor, draw(st.sampled_from(list(Reason))), rounded=rounded)
    key, text = st.text("aé=\0", min_size=1, max_size=3), st.text(max_size=9)
    metadata = draw(st.dictionaries(key, text, max_size=3))
    return Archive(entries, draw(st.integers(0, 2**40)), metadata, draw(st.booleans()))


def source_of(state, **options):
    size = sum(t.nbytes for t in state.values())
    return Source(list(state), state.__getitem__, size, **options)


def weights_like_trained(seed=0, layers=4):
    """Correlated inputs and a few strong weights, as training leaves them."""
    draw = generator(seed)
    state = {}
    for i in range(layers):
        spectrum = torch.diag(torch.linspace(1.5, 0.05, 48) ** 2)
        basis = torch.linalg.qr(torch.randn(48, 48, generator=draw)).Q
        weight = torch.randn(64, 48, generator=draw) @ spectrum @ basis * 0.1 * (i + 1)
        state[f"{i}.weight"] = weight * (1 + torch.rand(64, 1, generator=draw))
        state[f"{i}.bias"] = torch.randn(64, generator=draw)
    return state
