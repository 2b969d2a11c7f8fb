# SPDX-License-Identifier: Apache-2.0
"""Tensors whose rows are read from a file when they are indexed."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from tersor.compression import resume
from tersor.compression.assembly import survey
from tersor.errors import InputError
from tersor.storage import dtypes
from tersor.storage.checkpoint import StoredTensor, open_checkpoint, source
from tersor.tiling import row_blocks


def saved(folder, **tensors):
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize("dtype", dtypes.NAMES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (7, 3), (4, 2, 3)], ids=str)
def test_all_types_and_shapes_are_read_as_safetensors_reads_them(tmp_path, dtype, shape):
    size = torch.zeros(shape).numel() * dtype.itemsize
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), dtype=torch.uint8)
    path = saved(tmp_path, other=torch.ones(3, dtype=torch.uint8), w=bits.view(dtype).view(shape))
    read, wanted = open_checkpoint(path).load("w"), load_file(path)["w"]
    assert read.dtype == dtype and read.shape == shape
    assert torch.equal(read.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8))


def test_rows_are_those_of_the_whole_tensor(tmp_path):
    weight = torch.randn(11, 2, 3).bfloat16()
    stored = open_checkpoint(saved(tmp_path, w=weight)).view("w")
    assert isinstance(stored, StoredTensor)
    for rows in (slice(2, 5), slice(None), slice(9, 20), slice(4, 4), torch.tensor([7, 0, 7])):
        assert torch.equal(stored[rows], weight[rows])
    blocks = list(row_blocks(stored, most=25))
    assert [len(block) for block in blocks] == [4, 4, 3] and torch.equal(torch.cat(blocks), weight)


def test_a_file_that_became_shorter_is_an_error(tmp_path):
    path = saved(tmp_path, w=torch.randn(100, 10))
    opened = open_checkpoint(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match="tensor 'w' cannot be read: the file ends early"):
        opened.load("w")
    assert opened.view("w")[0:99].shape == (99, 10)
    path.unlink()
    with pytest.raises(InputError, match="'w' cannot be read: No such file"):
        opened.load("w")


@pytest.mark.parametrize("worst", [1.0, float("nan"), float("inf"), 1e30])
def test_large_tensors_are_judged_in_blocks_as_others_are_as_a_whole(tmp_path, monkeypatch, worst):
    weight = torch.randn(300, 10)
    weight[250, 3] = worst
    path = saved(tmp_path, w=weight, v=torch.ones(9))

    def judged():
        try:
            entries, weights = survey(open_checkpoint(path))
            return [type(e.content) for e in entries.values()], [w.variance for w in weights]
        except InputError as error:
            return str(error)

    whole, digest = judged(), resume.identity(open_checkpoint(path), None, [])
    monkeypatch.setattr(source, "LARGE", 1000)
    monkeypatch.setattr(row_blocks, "__defaults__", (1000,))
    assert isinstance(open_checkpoint(path).rows("w"), StoredTensor)
    assert resume.identity(open_checkpoint(path), None, []) == digest
    in_blocks = judged()
    if isinstance(whole, str):
        assert in_blocks == whole
    else:
        assert in_blocks[0] == whole[0] and in_blocks[1] == pytest.approx(whole[1])
