import json
from pathlib import Path

import pytest
from make import digest, expectation

import tersor
from tersor.storage.opened import open_file

FOLDER = Path(__file__).parent
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_files_decode_to_the_same_values_for_ever(name):
    path = FOLDER / f"{name}.tersor"
    assert path.stat().st_size < 5000
    assert expectation(open_file(path)) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_files_through_the_public_functions(name):
    path = FOLDER / f"{name}.tersor"
    tensors = tersor.load_state_dict(path)
    assert {n: digest(t) for n, t in tensors.items()} == {
        n: facts["sha256"] for n, facts in EXPECTED[name].items()
    }
    assert len(tersor.inspect(path).tensors) == len(tensors)
