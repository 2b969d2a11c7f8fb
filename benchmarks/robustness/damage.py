# SPDX-License-Identifier: Apache-2.0
"""Is all damage found? Every truncation and every single-bit flip of the golden files.

Each is given to the C decoder (tests/decoder/damage.c, with sanitizers) and to ``tersor verify``.

    python -m benchmarks.robustness.damage
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.lib import parts, record
from benchmarks.lib.places import TESTS
from tersor.storage.verify import verify

sys.path.insert(0, str(TESTS / "support"))

import c_decoder


def unnoticed(data: bytes) -> int:
    """Truncations and flips in which ``tersor verify`` finds nothing wrong."""
    damaged = [data[:size] for size in range(len(data))]
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    return sum(not verify(d).problems for d in damaged)


def measure(path: Path) -> dict[str, Any]:
    program = c_decoder.build(sources=(TESTS / "decoder" / "damage.c",))
    found = subprocess.run([program, path], check=True, capture_output=True, text=True).stdout
    data = path.read_bytes()
    return (
        {"file": path.name, "bytes": len(data)}
        | json.loads(found)
        | {"unnoticed_by_verify": unnoticed(data)}
    )


def main() -> None:
    rows = [measure(path) for path in sorted((TESTS / "golden").glob("*.tersor"))]
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    record.write("damage", rows, measures=parts.DECODERS)


if __name__ == "__main__":
    main()
