"""A short run of what `make fuzz` runs for long, without a fuzzer: the corpus and changes of it."""

import random
import subprocess
from pathlib import Path

import c_decoder
import fuzz_reader
import inputs
import pytest
from samples import small_archive, to_file_bytes

from tersor.storage import container, layout

HERE = Path(__file__).parent
CORPUS = sorted(inputs.CORPUS.iterdir())


def test_the_corpus_is_small():
    assert CORPUS and sum(path.stat().st_size for path in CORPUS) < 100_000


def test_the_c_decoder():
    """Sanitizers stop the program at the first error."""
    flags = (*c_decoder.SANITIZED, c_decoder.WITHOUT_CHECKSUMS)
    program = c_decoder.build(*flags, sources=(HERE / "replay.c", HERE / "fuzz_decoder.c"))
    done = subprocess.run([program, "40", *CORPUS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
