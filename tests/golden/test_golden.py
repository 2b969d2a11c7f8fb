# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
from pathlib import Path

import pytest
from make import digest, expectation

import tersor
from tersor.io import verify
from tersor.storage.opened import open_file

FOLDER = Path(__file__).parent
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


def test_the_files_are_the_same_for_ever():
    """Or the tests below would prove nothing. Files of a later version are added beside these."""
    found = {path.stem: path.read_bytes() for path in FOLDER.glob("*.tersor")}
    assert found.keys() == EXPECTED.keys() == DIGESTS.keys()
    for name, data in found.items():
        assert data[8] == 1 and len(data) < 8000
        assert hashlib.sha256(data).hexdigest() == DIGESTS[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_files_decode_to_the_same_values_for_ever(name):
    with open_file(FOLDER / f"{name}.tersor") as file:
        assert expectation(file) == EXPECTED[name]["tensors"]
        assert file.metadata == EXPECTED[name]["metadata"]
        assert file.content_hash == EXPECTED[name]["content_hash"]


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_files_through_the_public_functions(name):
    path = FOLDER / f"{name}.tersor"
    tensors = tersor.load_state_dict(path)
    assert {n: digest(t) for n, t in tensors.items()} == {
        n: facts["sha256"] for n, facts in EXPECTED[name]["tensors"].items()
    }
    assert len(tersor.inspect(path).tensors) == len(tensors)
    assert not verify(path).problems


def test_they_hold_what_the_format_has():
    with open_file(FOLDER / "every_kind.tersor") as file:
        assert {f.kind for f in file.layout.fields} == {0, 1, 2, 3}
        states = {f.detail.coding.states for f in file.layout.factored}
        assert states == {1, 4, 8, 16, 32, 64}
    with open_file(FOLDER / "slices.tersor") as file:
        assert [f.slices for f in file.layout.factored] == [2, 3]
    with open_file(FOLDER / "compressed.tersor") as file:
        assert file.metadata and file.content_hash
    with open_file(FOLDER / "lossless.tersor") as file:
        assert len(file.layout.groups) == 3


DIGESTS = {
    "compressed": "2a1feee63d7a29b674dcf94de8a89fb94f1144c4a37e2cb40bccf9bdb3331a46",
    "every_kind": "9002be1d2de94c1b7bcff06325d84a96982d3629b53436cf956881d5abfed835",
    "lossless": "93fc4a047cc877868d4a21aaa6d17d8eddeafebb0fbe0b0872f82402c4f30c8c",
    "slices": "f15ae708e256e891432606bacaa7d08535f0b16557a98b252313bb9c6a690238",
}
