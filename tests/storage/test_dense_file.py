# SPDX-License-Identifier: Apache-2.0
"""Safetensors files that are written tensor by tensor: safetensors reads them back."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load
from samples import bits, tensors

from tersor.errors import InputError
from tersor.storage.dense_file import Kind, write


def written(path, tensors, order=None):
    kinds = {name: Kind(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write(path, kinds, ((name, [tensors[name]]) for name in order or tensors))
    return path.read_bytes()


@given(st.lists(tensors(), max_size=5), st.randoms())
def test_any_tensors_in_any_order(tmp_path_factory, values, random):
    given = {f"name {i} é": value for i, value in enumerate(values)}
    order = random.sample(list(given), len(given))
    data = written(tmp_path_factory.getbasetemp() / "any.safetensors", given, order)
    assert {n: bits(t) for n, t in load(data).items()} == {n: bits(t) for n, t in given.items()}


def test_elements_are_aligned_and_the_framework_is_named(tmp_path):
    path = tmp_path / "dense.safetensors"
    data = written(
        path,
        {
            "bytes": torch.ones(3, dtype=torch.uint8),
            "halves": torch.ones(3, dtype=torch.float16),
            "doubles": torch.ones(3, dtype=torch.float64),
        },
    )
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    assert size % 8 == 0 and len(data) == 8 + size + 3 + 6 + 24
    starts = {n: f["data_offsets"][0] for n, f in header.items() if n != "__metadata__"}
    assert starts == {"doubles": 0, "halves": 24, "bytes": 30}
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_strided_tensors_are_written_row_by_row(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3).T
    data = written(tmp_path / "dense.safetensors", {"t": tensor})
    assert torch.equal(load(data)["t"], tensor)


def test_pieces_follow_one_another(tmp_path):
    tensor, path = torch.randn(7, 3), tmp_path / "dense.safetensors"
    kinds = {"t": Kind((7, 3), torch.float32), "u": Kind((2,), torch.float32)}
    write(path, kinds, [("u", [torch.ones(2)]), ("t", (tensor[:4], tensor[4:6], tensor[6:]))])
    assert torch.equal(load(path.read_bytes())["t"], tensor)


def test_the_reserved_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="'__metadata__'; rename it"):
        written(tmp_path / "dense.safetensors", {"__metadata__": torch.ones(1)})
    assert not (tmp_path / "dense.safetensors").exists()
