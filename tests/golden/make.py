# SPDX-License-Identifier: Apache-2.0
"""Make the golden files of a version of the format, and what they must decode to.

Those of version 1 are made, and stay for ever: this shows how. Files of a later version are added
beside them.

    python tests/golden/make.py FOLDER
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.coding import records
from tersor.coding.rate import TRELLISES
from tersor.compression.driver import compress_source
from tersor.factorization.weights import factorize_weight
from tersor.factors import Factors
from tersor.storage import container, dtypes
from tersor.storage.archive import Alias, Archive, Contents, Entry, Plain, Reason
from tersor.storage.checkpoint import Source
from tersor.storage.opened import open_file

LONG = 2000
"""Integers of a factor of which a digest is enough."""


def compressed() -> Archive:
    """A small network as the driver compresses it: convolution, matrix, biases, tied weight."""
    draw = torch.Generator().manual_seed(0)
    state = {
        "conv.weight": torch.randn(16, 8, 3, 3, generator=draw) * 0.1,
        "conv.bias": torch.randn(16, generator=draw) * 0.01,
        "norm.running_var": torch.rand(16, generator=draw) + 0.5,
        "norm.num_batches_tracked": torch.tensor(1234),
        "head.weight": (torch.randn(40, 50, generator=draw) * 0.05).half(),
        "head.bias": (torch.randn(40, generator=draw) * 0.01).half(),
    }
    size = sum(t.nbytes for t in state.values())
    names = [*state, "tied.weight"]
    source = Source(
        names, lambda n: state[n.replace("tied", "head")], size, {"tied.weight": "head.weight"}
    )
    said = {"name": "golden", "licence": "CC0-1.0", "source": "seed 0, größer als nichts"}
    return compress_source(source, ratio=4.8, metadata=said, hashed=True)


def lossless() -> Archive:
    """Every bit of tensors of all floating-point types, NaN included, in three groups."""
    draw = torch.Generator().manual_seed(2)
    state: dict[str, Tensor] = {
        str(dtype).removeprefix("torch."): torch.randn(7, 5, generator=draw).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    state["float32"][0, 0], state["float64"][0, 1] = math.nan, -math.inf
    state["zeros"] = torch.zeros(2**20 + 5, dtype=torch.uint8)
    state["wave"] = torch.randn(4, generator=draw, dtype=torch.complex64)
    source = Source(list(state), state.__getitem__, 2_000_000)
    return compress_source(source, lossless=True, metadata={"note": ""})


def slices() -> Archive:
    """Latents in two and in three slices, with and without a trellis."""
    draw = torch.Generator().manual_seed(3)
    entries: dict[str, Entry] = {}
    for shape, tile, slice_rows, states in (
        ((2 * 4096 + 5, 2), 2, 4096, 8),
        ((200, 256), 4, 64, 1),
    ):
        weight = torch.randn(shape, generator=draw) * (torch.rand(shape, generator=draw) < 0.02)
        with_slices = factorize_weight(weight, tile, 0.5, states=states)
        encoded = records.encode(with_slices, slice_rows=slice_rows)
        assert len(encoded.streams) > 1
        entries["x".join(map(str, shape))] = Entry(shape, torch.float32, encoded)
    return Archive(entries, 100_000)


def trellises() -> list[tuple[str, Factors]]:
    """What the solver makes of a small weight with each trellis, and the largest integers."""
    weight = torch.randn(9, 6, 3, 3, generator=torch.Generator().manual_seed(4))
    made = [(f"{s} states", factorize_weight(weight, 9, 0.3, states=s)) for s in (1, *TRELLISES)]
    spread = torch.tensor([[4095, -4095, 1, 0, 3, -2047, 1024, 2, 0, 0, 300, -90]]).short()
    return [*made, ("large", Factors(spread[:, :4].T.contiguous(), spread, -1e-3, (6, 8)))]


def every_kind() -> Archive:
    """Every data type and reason; factors with padding, of high rank, of rank 0, of one element."""
    draw = torch.Generator().manual_seed(1)
    entries: dict[str, Entry] = {}
    for number, dtype in enumerate(dtypes.NAMES):
        raw = torch.arange(16, dtype=torch.uint8) * 37 + number
        tensor = raw[:3] % 2 == 1 if dtype == torch.bool else raw.view(dtype)
        values = Plain(tensor, list(Reason)[number % len(Reason)])
        entries[f"type/{dtypes.NAMES[dtype]}"] = Entry(tuple(tensor.shape), dtype, values)
    entries["rounded"] = Entry(
        (2, 2), torch.float64, Plain(torch.tensor([[1.5, -2], [0, 3e-5]]).bfloat16(), Reason.SMALL)
    )
    entries["empty"] = Entry((0, 3), torch.float32, Plain(torch.zeros(0, 3), Reason.EMPTY))
    entries["number"] = Entry((), torch.int32, Plain(torch.tensor(-7).int(), Reason.NOT_FLOAT))
    for shape, tile, rank, dtype in (
        ((5, 7), 3, 2, torch.float32),
        ((4, 3, 3, 3), 9, 12, torch.float64),
        ((6, 8), 1, 1, torch.bfloat16),
        ((3, 4), 4, 0, torch.float16),
        ((2, 1), 1, 1, torch.float32),
    ):
        columns = shape[0] * -(-torch.Size(shape[1:]).numel() // tile)
        codebook = torch.randint(-127, 128, (tile, rank), generator=draw).short()
        latent = (torch.randn(rank, columns, generator=draw) * 1.5).short()
        factors = Factors(codebook, latent, 0.0123, shape, dtype)
        entries[f"factors/{'x'.join(map(str, shape))}"] = Entry(
            shape, dtype, records.encode(factors, 6.25)
        )
    for name, factors in trellises():
        entries[f"trellis/{name}"] = Entry(factors.shape, factors.dtype, records.encode(factors))
    entries["alias é 別名"] = Entry((5, 7), torch.float32, Alias("factors/5x7"))
    return Archive(entries, 1_000_000)


def digest(tensor: Tensor) -> str:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()


def integers(factor: Tensor) -> list[int] | str:
    """The integers, row by row, or a digest of many."""
    return factor.flatten().tolist() if factor.numel() <= LONG else digest(factor)


def expectation(contents: Contents) -> dict[str, Any]:
    """What the file decodes to: types, shapes, digests of the dense values, and the integers."""
    content = {}
    for name in contents.shapes:
        value, dense = contents.value(name), contents.tensor(name)
        facts: dict[str, Any] = {
            "type": dtypes.NAMES[dense.dtype],
            "shape": list(dense.shape),
            "sha256": digest(dense),
        }
        if isinstance(value, Factors) and contents.original(name) == name:
            facts["codebook"] = integers(value.codebook)
            facts["latent"] = integers(value.latent)
        content[name] = facts
    return content


def main() -> None:
    folder, expected = Path(sys.argv[1]), {}
    for make in (compressed, every_kind, lossless, slices):
        path, archive = folder / f"{make.__name__}.tersor", make()
        container.write(path, archive)
        with open_file(path) as file:
            said = {"metadata": file.metadata, "content_hash": file.content_hash}
        expected[make.__name__] = said | {"tensors": expectation(archive)}
    lines = json.dumps(expected, separators=(",", ":"), ensure_ascii=False).replace("},", "},\n")
    (folder / "expected.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
