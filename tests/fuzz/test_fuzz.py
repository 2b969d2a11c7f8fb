# SPDX-License-Identifier: Apache-2.0
"""A short run of what `make fuzz` runs for long, without a fuzzer: the corpus and changes of it."""

import random
import subprocess
from pathlib import Path

import c_decoder
import fuzz_reader
import inputs
import kernel_sources
import pytest
from samples import small_archive, to_file_bytes

from tersor.storage import container, layout

HERE = Path(__file__).parent
CORPUS = sorted(inputs.CORPUS.iterdir())
FILES = [*inputs.CORPUS.glob("*.file"), *(HERE.parent / "golden").glob("*.tersor")]
NATIVE, KERNELS = (sorted((HERE / name).iterdir()) for name in ("native", "kernels"))
CSRC = HERE.parents[1] / "csrc"


def test_the_corpus_is_small():
    assert CORPUS and sum(path.stat().st_size for path in CORPUS) < 100_000


def test_the_c_decoder():
    """Sanitizers stop the program at the first error."""
    flags = (*c_decoder.SANITIZED, c_decoder.WITHOUT_CHECKSUMS)
    program = c_decoder.build(*flags, sources=(HERE / "replay.c", HERE / "fuzz_decoder.c"))
    done = subprocess.run([program, "40", *CORPUS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def replayed(folder, harness, sources, times, files, objects=()):
    """Files and changes of them through a harness in C++, which sanitizers stop at an error."""
    c_decoder.require("c++", *c_decoder.SANITIZED)
    includes = [f"-I{folder}" for folder in (CSRC, c_decoder.SOURCES, HERE)]
    flags = [*c_decoder.SANITIZED, *includes, "-ffp-contract=off"]
    subprocess.run(["cc", *flags, "-c", HERE / "replay.c", *sources], check=True, cwd=folder)
    objects, program = (*folder.glob("*.o"), *objects), folder / "replay"
    command = ["c++", "-std=c++17", *flags, "-pthread", harness, *objects, "-o", program]
    subprocess.run(command, check=True)
    done = subprocess.run([program, str(times), *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_native_coder(tmp_path):
    c_decoder.require("c++", *c_decoder.SANITIZED)
    options = [
        "-std=c++17",
        *c_decoder.SANITIZED,
        *kernel_sources.SOLVER_FLAGS,
        "-ffp-contract=off",
    ]
    solver = tmp_path / "solver" / "solver.o"
    solver.parent.mkdir()
    command = ["c++", *options, "-c", CSRC / "solver" / "solver.cpp", "-o", solver]
    subprocess.run(command, check=True)
    replayed(tmp_path, HERE / "fuzz_native.cpp", [], 200, NATIVE, [solver])


@pytest.mark.slow
def test_the_kernels(tmp_path):
    """Each buffer is memory of its exact size; the sizes and numbers are any."""
    objects = []
    for target, flags in kernel_sources.TARGETS.items():
        (tmp_path / target).mkdir()
        # GCC counts vectors, in which sums of damaged lists wrap. Clang, for `make fuzz`, does not.
        flags = [*flags, "-Wno-psabi", "-fno-sanitize=signed-integer-overflow"]
        c_decoder.require("c++", *c_decoder.SANITIZED, *flags)
        options = ["-std=c++17", *c_decoder.SANITIZED, *flags, "-c"]
        subprocess.run(
            ["c++", *options, *kernel_sources.of(CSRC)], check=True, cwd=tmp_path / target
        )
        objects += (tmp_path / target).iterdir()
    replayed(tmp_path, HERE / "fuzz_kernels.cpp", [], 100, KERNELS, objects)


@pytest.mark.slow
def test_files_changed_field_by_field(tmp_path):
    """With checksums that fit: many are valid, and all are read by both decoders or by neither."""
    c_decoder.require("c++")
    one_input, mutate = fuzz_reader.harness(tmp_path, checked=True), fuzz_reader.mutator(tmp_path)
    made, valid = set(), 0
    for seed in range(200):
        data = FILES[seed % len(FILES)].read_bytes()
        for change in range(1 + seed % 3):
            data = mutate(data, 1 << 16, 10 * seed + change)
        one_input(data)
        made.add(data)
        (tmp_path / f"{len(made)}.tersor").write_bytes(data)
        valid += fuzz_reader.read(data) is not None
    assert len(made) > 150 and 20 < valid < 190
    harness = HERE / "fuzz_structure.cpp"
    sources = [*c_decoder.LIBRARY, HERE / "mutate.cpp"]
    replayed(tmp_path, harness, sources, 0, sorted(tmp_path.glob("*.tersor")))


@pytest.fixture
def one_input(tmp_path, monkeypatch):
    c_decoder.require("cc")
    for module in (container, layout):  # the harness puts another in its place
        monkeypatch.setattr(module, "zlib", module.zlib)
    return fuzz_reader.harness(tmp_path)


def test_the_reader(one_input):
    draw = random.Random(0)
    for path in CORPUS:
        data = path.read_bytes()
        one_input(data)
        for _ in range(5):
            changed = bytearray(data)
            for _ in range(draw.randint(1, 4)):
                if changed:
                    changed[draw.randrange(len(changed))] = draw.randrange(256)
            one_input(bytes(changed))


def test_a_difference_is_reported(one_input, monkeypatch):
    """Or the test above could not fail."""
    monkeypatch.setattr(fuzz_reader, "read", lambda file: b"something else")
    with pytest.raises(AssertionError, match="Python: b'something else'; C: b'"):
        one_input(to_file_bytes(small_archive()))


def test_inputs_stand_for_the_files_that_they_were_made_of(one_input):
    data = to_file_bytes(small_archive())
    assert fuzz_reader.read(inputs.to_file(inputs.from_file(data))) == fuzz_reader.read(data)
