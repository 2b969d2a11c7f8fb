# SPDX-License-Identifier: Apache-2.0
"""What a fuzzer calls for each input: the Python reader, and whether the C decoder agrees.

The reader may raise a FileFormatError and nothing else. Whatever it accepts the C decoder must
accept, with the same bytes, and nothing more.

    python tests/fuzz/fuzz_reader.py CORPUS -runs=1000000    # with atheris and a C compiler
    python tests/fuzz/fuzz_reader.py --structure CORPUS      # files changed field by field
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
import types
import zlib
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "support"), str(TESTS / "fuzz")]

Visit = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t
)


class Fitting(int):
    """A checksum that is equal to all others."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def c_decoder(folder: Path, checked: bool) -> Callable[[bytes], bytes | None]:
    """The C decoder as a function: the bytes of all tensors, or None if it refuses the file."""
    import c_decoder
    import inputs

    library = folder / "decoder.so"
    flags = ["-O2", "-shared", "-fPIC", f"-I{c_decoder.SOURCES}"]
    flags += [] if checked else [c_decoder.WITHOUT_CHECKSUMS]
    subprocess.run(["cc", *flags, *c_decoder.LIBRARY, "-o", library], check=True)
    whole = ctypes.CDLL(str(library)).tersor_decode_whole
    whole.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64, Visit, ctypes.c_void_p)
    found: list[bytes] = []
    visit = Visit(lambda context, tensor, data, size: found.append(data[:size] if size else b""))

    def decode(file: bytes) -> bytes | None:
        found.clear()
        status = whole(file, len(file), inputs.LIMIT, visit, None)
        return None if status else b"".join(found)

    return decode


def read(file: bytes) -> bytes | None:
    """The same through the Python reader."""
    import inputs
    import torch

    from tersor.errors import FileFormatError
    from tersor.io import dense_tensors
    from tersor.storage.opened import OpenFile

    try:
        tensors = dense_tensors(OpenFile(file, max_bytes=inputs.LIMIT))
    except FileFormatError:
        return None
    flat = (t.contiguous().reshape(-1).view(torch.uint8) for t in tensors.values())
    return b"".join(t.numpy().tobytes() for t in flat)


def mutator(folder: Path) -> Callable[[bytes, int, int], bytes]:
    """A function that changes a file field by field, given the most bytes and a seed."""
    import c_decoder

    library, objects = folder / "mutate.so", folder / "objects"
    objects.mkdir()
    flags = ["-O2", "-fPIC", f"-I{c_decoder.SOURCES}"]
    subprocess.run(["cc", *flags, "-c", *c_decoder.PORTABLE], check=True, cwd=objects)
    sources = [TESTS / "fuzz" / "mutate.cpp", *objects.iterdir()]
    subprocess.run(["c++", "-std=c++17", *flags, "-shared", *sources, "-o", library], check=True)
    mutate = ctypes.CDLL(str(library)).tersor_mutate
    mutate.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint)
    mutate.restype = ctypes.c_size_t

    def changed(data: bytes, most: int, seed: int) -> bytes:
        room = max(most, len(data))
        memory = ctypes.create_string_buffer(bytes(data), room + 1)
        size = mutate(memory, len(data), room, seed & 0xFFFFFFFF)
        return memory.raw[:size]

    return changed


def harness(folder: Path, checked: bool = False) -> Callable[[bytes], None]:
    """The function to call; unless checked, from here on the reader ignores checksums."""
    import inputs

    from tersor.storage import container, layout

    decode = c_decoder(folder, checked)
    unchecked = vars(zlib) | {"crc32": lambda data: Fitting(0)}
    for module in () if checked else (container, layout):
        module.zlib = types.SimpleNamespace(**unchecked)  # type: ignore[attr-defined]

    def one_input(data: bytes) -> None:
        file = data if checked else inputs.to_file(data)
        ours, theirs = read(file), decode(file)
        if ours != theirs:
            raise AssertionError(f"Python: {ours!r:.200}; C: {theirs!r:.200}")

    return one_input


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["tersor.storage", "tersor.factors", "tersor.tiling"]):
        import tersor.io  # noqa: F401
    structured = "--structure" in sys.argv
    arguments = [argument for argument in sys.argv if argument != "--structure"]
    with tempfile.TemporaryDirectory() as folder:
        more = {"custom_mutator": mutator(Path(folder))} if structured else {}
        atheris.Setup(arguments, harness(Path(folder), structured), **more)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
