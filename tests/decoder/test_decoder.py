# SPDX-License-Identifier: Apache-2.0
"""The C99 decoder against the Python reader."""

import json
import re
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import c_decoder
import pytest
import specified
import torch
from c_decoder import PORTABLE, SANITIZED, STRICT, WITHOUT_CHECKSUMS, build, expected, run
from hypothesis import given, settings
from samples import archives, plain, small_archive, to_file_bytes

from tersor.coding import records
from tersor.errors import FileFormatError
from tersor.factorization.weights import factorize_weight
from tersor.factors import Factors
from tersor.io import dense_tensors
from tersor.storage import container, header
from tersor.storage.archive import Archive, Entry, Plain, Reason
from tersor.storage.cursor import Writer
from tersor.storage.opened import OpenFile, open_file

HERE = Path(__file__).parent
GOLDEN = sorted((HERE.parent / "golden").glob("*.tersor"))
STATIC = ("-O2", "-static")
MACHINES = {
    "32 bits": ("cc", ("-m32",), ()),
    "32 bits, cross-compiled": ("i686-linux-gnu-gcc", STATIC, ()),
    "big-endian": ("s390x-linux-gnu-gcc", STATIC, ("qemu-s390x",)),
    "big-endian, 32 bits": ("powerpc-linux-gnu-gcc", STATIC, ("qemu-ppc",)),
}


def check(archive, program=None, *emulator):
    check_data(to_file_bytes(archive), program, *emulator)


def check_data(data, program=None, *emulator):
    tensors = dense_tensors(OpenFile(data))
    assert run(data, program or build(), *emulator) == expected(tensors)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_files(path):
    check_data(path.read_bytes())


@settings(max_examples=60)
@given(archives())
def test_any_archive(archive):
    check(archive)


def solved(states):
    """What the solver makes, with padding and rows longer than a block of the trellis."""
    entries = {}
    for shape, tile in (((24, 18, 3, 3), 9), ((70, 130), 8), ((1, 300), 1)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        encoded = records.encode(factorize_weight(weight, tile, 0.7, states=states))
        entries[str(shape)] = Entry(shape, torch.float32, encoded)
    return Archive(entries, 1)


@pytest.mark.parametrize("states", specified.STATES)
def test_what_the_solver_makes(states):
    check(solved(states))


def extreme():
    """Sums up to 2^24, results that overflow or are subnormal, negative zeros."""
    entries = {}
    integers = torch.tensor([[4095, -4095, 1, 0, 3, -2047, 1024, 2]], dtype=torch.int16)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for scale in (-1.0, 3e38, 1e-45, -3.1e-43, 1.7e-38, 7e-9, 0.0039, -6.0e-8, 0.0, -0.0):
            factors = Factors(integers[:, :4].T.contiguous(), integers, scale, (4, 8), dtype)
            encoded = records.encode(factors)
            entries[f"{dtype} {scale}"] = Entry((4, 8), dtype, encoded)
    return Archive(entries, 1)


def test_extreme_numbers():
    check(extreme())


def test_all_rounded_numbers():
    """Infinities, subnormal numbers and every NaN included."""
    values = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    entries = {
        str(dtype): Entry((2**16,), dtype, Plain(values, Reason.SMALL))
        for dtype in (torch.float32, torch.float64)
    }
    check(Archive(entries, 1))


def test_large_groups_of_unfactored_tensors():
    """Some that fill a group, exceed one, or share one with those of other sizes."""
    draw = torch.Generator().manual_seed(0)
    sizes = {"a": 2**18, "b": 1, "c": 2**18 + 1, "d": 3, "e": 2**17, "f": 2**17, "g": 0, "h": 7}
    entries = {n: plain(torch.randn(s, generator=draw), Reason.SMALL) for n, s in sizes.items()}
    entries["bytes"] = plain(torch.arange(200, dtype=torch.uint8), Reason.NOT_FLOAT)
    entries["rounded"] = plain(torch.arange(9.0).double(), Reason.SMALL, rounded=True)
    check(Archive(entries, 1))


def test_codings_of_any_start():
    """The starts are a byte each, and far off they only cost bits."""
    weight = records.encode(Factors(*factors_of_ones(), 1.0, (5, 6)))
    for start in (0, 255):
        coding = replace(weight.coding, codebook_start=start, latent_start=start)
        archive = Archive({"w": Entry((5, 6), torch.float32, replace(weight, coding=coding))}, 1)
        data = to_file_bytes(archive)
        found = run(data, build())
        try:
            assert found == expected(dense_tensors(OpenFile(data)))
        except FileFormatError:
            assert found is None


def factors_of_ones():
    return torch.ones(3, 2, dtype=torch.int16), torch.ones(2, 10, dtype=torch.int16)


@pytest.mark.parametrize("compiler", ["cc", "clang"])
def test_files_without_anything(compiler):
    """Nothing to be read, and arrays that are not there; Clang's sanitizer counts it as undefined
    to add even 0 to no address."""
    program = build(*SANITIZED, compiler=compiler)
    check(Archive({}, 0), program)
    weight = records.zero((4, 4), torch.float32, 0.0)
    check(Archive({"zeros": Entry((4, 4), torch.float32, weight)}, 0), program)
    check(Archive({"": plain(torch.zeros(0), Reason.EMPTY)}, 0), program)


@pytest.mark.parametrize("machine", MACHINES)
def test_other_machines(machine):
    compiler, flags, emulator = MACHINES[machine]
    for tool in emulator:
        c_decoder.require_tool(tool)
    program = build(*flags, compiler=compiler)
    for path in GOLDEN:
        check_data(path.read_bytes(), program, *emulator)
    for archive in (extreme(), small_archive(), *map(solved, (1, 4, 64))):
        check(archive, program, *emulator)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [SANITIZED, (*SANITIZED, WITHOUT_CHECKSUMS)])
def test_all_truncations_and_flips(flags, tmp_path):
    """Each is refused; where checksums do not count, many flips are not, but all are harmless."""
    for number, data in enumerate([to_file_bytes(small_archive()), GOLDEN[1].read_bytes()]):
        (tmp_path / "file").write_bytes(data)
        command = [build(*flags, sources=(HERE / "damage.c",)), tmp_path / "file"]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        found = json.loads(done.stdout)
        assert (found["truncations"], found["flips"]) == (len(data), 8 * len(data)), number
        assert found["truncations_accepted"] == 0
        assert (found["flips_accepted"] > 0) == (WITHOUT_CHECKSUMS in flags)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_arrays_that_are_too_small_are_refused(path):
    command = [build(sources=(HERE / "arrays.c",)), path]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert int(done.stdout) > 2 * len(open_file(path))


def rows_checked(data, folder):
    """How many tensors of factors of float32 have the same elements row by row as at once."""
    (folder / "file").write_bytes(data)
    command = [build(sources=(HERE / "rows.c",)), folder / "file"]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def test_rows_are_those_of_whole_tensors(tmp_path):
    """Padded tiles, a rank of 0, all slices of a latent, sums up to 2^24."""
    assert sum(rows_checked(path.read_bytes(), tmp_path) for path in GOLDEN) > 3
    assert rows_checked(to_file_bytes(solved(8)), tmp_path) == 3
    assert rows_checked(to_file_bytes(extreme()), tmp_path) == 10
    assert rows_checked(to_file_bytes(sliced()), tmp_path) == 2


def sliced():
    """A latent of 3 slices, of which the last is longer, and a weight of zeros."""
    weight = torch.randn(100, 4096, generator=torch.Generator().manual_seed(0))
    factors = factorize_weight(weight, 32, 0.7)
    encoded = records.encode(factors, slice_rows=32)
    entries = {"w": Entry((100, 4096), torch.float32, encoded)}
    entries["zeros"] = Entry((4, 4), torch.float32, records.zero((4, 4), torch.float32, 0.0))
    return Archive(entries, 1)


@pytest.mark.parametrize("elements", [517, 1031])
def test_what_a_section_cannot_hold_is_refused_at_once(tmp_path, elements):
    """One byte gives 1032 at most: claims of up to twice as many once passed until decoding."""
    values = torch.zeros(elements, dtype=torch.int16)
    short = with_section({"w": plain(values, Reason.NOT_FLOAT)}, b"\0")
    with pytest.raises(FileFormatError, match=f"1 bytes cannot hold {2 * elements}"):
        OpenFile(short)
    path = tmp_path / "short.tersor"
    path.write_bytes(short)
    program = build(sources=(HERE / "metadata.c",))  # which opens the file, and decodes nothing
    assert subprocess.run([program, path], capture_output=True).returncode == 2


def with_section(entries, section):
    """A file of unfactored tensors with another section than theirs, and checksums that fit."""
    out = Writer()
    out.integer(1)
    header.write(out, entries)
    out.integers([0, len(section)])
    out.pack("I", zlib.crc32(section))
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = compressor.compress(out.data) + compressor.flush()
    sizes = len(deflated), len(out.data), zlib.crc32(deflated)
    prefix = container.PREFIX.pack(container.MAGIC, container.VERSION, *sizes)
    return prefix + deflated + section


@pytest.mark.parametrize("metadata", [{}, {"name": "é", "licence": "MIT", "note": ""}])
@pytest.mark.parametrize("hashed", [False, True])
def test_what_a_file_says_of_itself(tmp_path, metadata, hashed):
    path = tmp_path / "model.tersor"
    container.write(path, replace(small_archive(), metadata=metadata, hashed=hashed))
    command = [build(sources=(HERE / "metadata.c",)), path]
    told = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    lines = "".join(f"{key}={value}\n" for key, value in metadata.items())
    assert told == lines + (open_file(path).content_hash or "")


def test_nothing_but_memcpy_and_memset_is_called(tmp_path):
    """And no function needs much of the stack."""
    c_decoder.require("cc", "-O2", "-Wstack-usage=2048")
    c_decoder.require_tool("nm")
    flags = [*STRICT, "-O2", "-ffreestanding", "-Wstack-usage=2048", "-Wvla"]
    subprocess.run(["cc", *flags, "-c", *PORTABLE], check=True, cwd=tmp_path)
    objects = sorted(tmp_path.glob("*.o"))
    listing = subprocess.run(["nm", "-u", *objects], capture_output=True, check=True, text=True)
    used = set(re.findall(r" U (\w+)", listing.stdout))
    assert {name for name in used if not name.startswith("tersor_")} <= {"memcpy", "memset"}


def test_tables_are_those_of_the_specification():
    text = (c_decoder.SOURCES / "tables.h").read_text()
    tables = dict(re.findall(r"(\w+)\[[\d\]\[]+\] = \{(.*?)\};", text, re.DOTALL))
    numbers = {name: list(map(int, re.findall(r"\d+", body))) for name, body in tables.items()}
    priors = [int(p) for row in specified.PRIORS.values() for p in row.split()]
    assert numbers == {
        "MEAN": specified.MEAN,
        "INVERSE": specified.INVERSE,
        "WEIGHT": specified.WEIGHT,
        "RATE": specified.RATE,
        "PRIOR": priors,
    }
