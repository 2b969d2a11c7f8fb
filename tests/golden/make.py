"""Make the golden files and what they must decode to. Run it only when the format changes.

python tests/golden/make.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.compress import compress_source
from tersor.factors import Factors
from tersor.storage import container, dtypes, records
from tersor.storage.archive import Alias, Archive, Contents, Entry, Kept, Plain
from tersor.storage.checkpoint import Source

FOLDER = Path(__file__).parent


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
    return compress_source(source, ratio=5)


def every_kind() -> Archive:
    """Every data type and reason; factors with padding, of high rank, of rank 0, of one element."""
    draw = torch.Generator().manual_seed(1)
    entries: dict[str, Entry] = {}
    for number, dtype in enumerate(dtypes.NAMES):
        raw = torch.arange(16, dtype=torch.uint8) * 37 + number
        tensor = raw[:3] % 2 == 1 if dtype == torch.bool else raw.view(dtype)
        values = Plain(tensor, list(Kept)[number % len(Kept)])
        entries[f"type/{dtypes.NAMES[dtype]}"] = Entry(tuple(tensor.shape), dtype, values)
    entries["rounded"] = Entry(
        (2, 2), torch.float64, Plain(torch.tensor([[1.5, -2], [0, 3e-5]]).bfloat16(), Kept.SMALL)
    )
    entries["empty"] = Entry((0, 3), torch.float32, Plain(torch.zeros(0, 3), Kept.EMPTY))
    entries["number"] = Entry((), torch.int32, Plain(torch.tensor(-7).int(), Kept.NOT_FLOAT))
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
    entries["alias é 別名"] = Entry((5, 7), torch.float32, Alias("factors/5x7"))
    return Archive(entries, 1_000_000)


def digest(tensor: Tensor) -> str:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()


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
            facts["codebook"] = value.codebook.flatten().tolist()
            facts["latent"] = value.latent.flatten().tolist()
        content[name] = facts
    return content


def main() -> None:
    expected = {}
    for name, archive in (("compressed", compressed()), ("every_kind", every_kind())):
        container.write(FOLDER / f"{name}.tersor", archive)
        expected[name] = expectation(archive)
    lines = json.dumps(expected, separators=(",", ":"), ensure_ascii=False).replace("},", "},\n")
    (FOLDER / "expected.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
