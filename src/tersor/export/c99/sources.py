# SPDX-License-Identifier: Apache-2.0
"""Find the files that every exported program has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tersor.errors import InputError

RUNTIME = "tersor"
"""Folder of an exported program that has the runtime and the decoder."""

_HOSTED = {"example.c", "tersor_whole.c", "tersor_whole.h"}
"""Parts of the decoder that need an operating system, or are for whole files."""


def files() -> dict[str, str]:
    """Return the text of each file by its path in an exported folder.

    Raises
    ------
    InputError
        If the installation lacks them.
    """
    root = _root()
    parts = [*(root / "runtime").glob("*.[ch]"), *(root / "decoder").glob("*.[ch]")]
    found = {f"{RUNTIME}/{p.name}": p.read_text() for p in sorted(parts) if p.name not in _HOSTED}
    return found | {p.name: p.read_text() for p in sorted((root / "runtime/project").iterdir())}


def _root() -> Path:
    """Return the folder of C sources: installed beside the package, or that of the repository."""
    package = Path(__file__).parents[2]
    for root in (package / "csrc", package.parents[1] / "csrc"):
        if (root / "runtime").is_dir():
            return root
    raise InputError(
        f"the C sources that an export needs are not in {package / 'csrc'}; install tersor again"
    )


def readme(rows: Mapping[str, int]) -> str:
    """Return the text of the README of a program.

    Parameters
    ----------
    rows
        What the program takes.
    """
    table = "\n".join(f"| {name} | {number:,} |" for name, number in rows.items())
    return f"""# A model in C99

`tersor export c` wrote this folder. `model.h` is what an application needs:

```c
static uint8_t arena[MODEL_ARENA_BYTES];
static float output[MODEL_OUTPUT_ELEMENTS];

model state;
if (model_init(&state, arena, sizeof arena) == TERSOR_OK &&
    model_invoke(&state, input, output) == TERSOR_OK)
    ...
```

Add `model.c`, `weights.c` and `tersor/*.c` to the build, or this folder as a subdirectory of CMake.
Nothing is allocated, and nothing of a library is called but `memcpy` and `memset`.

| | |
| --- | ---: |
{table}

- `make check` runs the model on this computer and compares its outputs with those of torch.
- `make size` prints the bytes of flash, memory and stack on a Cortex-M4.
- `make qemu` runs it on an emulated one, and prints the instructions of a run.
"""
