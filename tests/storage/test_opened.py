# SPDX-License-Identifier: Apache-2.0
"""Single tensors of a file, and streams of all."""

import os

import pytest
import torch
from samples import bits, generator, plain, random_factors, small_archive, to_file_bytes

import tersor
from tersor.coding import records
from tersor.errors import FileFormatError, InputError
from tersor.factors import Factors
from tersor.storage import container, unfactored
from tersor.storage.archive import Alias, Archive, Entry, Reason
from tersor.storage.layout import Layout
from tersor.storage.opened import OpenFile, open_file


@pytest.fixture
def path(tmp_path):
    container.write(tmp_path / "model.tersor", small_archive())
    return tmp_path / "model.tersor"


@pytest.fixture
def sections_read(monkeypatch):
    """Positions of the sections that are looked at."""
    seen = []
    usual = Layout.section
    monkeypatch.setattr(
        Layout, "section", lambda self, data, i: (seen.append(i), usual(self, data, i))[1]
    )
    return seen


def test_a_mapping_of_names_to_dense_tensors(path):
    archive = small_archive()
    with tersor.open(path) as file:
        assert list(file) == list(archive.entries) and len(file) == 4
        assert file.shapes == archive.shapes and file.source_bytes == 600
        assert {n: bits(t) for n, t in file.items()} == {n: bits(archive.tensor(n)) for n in file}
        assert "layer.bias" in file and "bias" not in file and file.get("bias") is None
        with pytest.raises(KeyError, match="bias"):
            file["bias"]


def test_only_the_sections_that_hold_it_are_read(path, sections_read):
    with tersor.open(path) as file:
        assert file.shapes and "layer.weight" in file and not sections_read
        file["layer.steps"]
        assert sections_read == [1]
        file["tied.weight"]
        assert sections_read == [1, 0]


def test_inspecting_reads_no_section(path, sections_read):
    assert tersor.inspect(path).nbytes == path.stat().st_size
    assert not sections_read


def test_factors_of_a_name(path):
    with tersor.open(path) as file:
        for name in ("layer.weight", "tied.weight"):
            assert torch.equal(file.factors(name).codebook, random_factors((6, 10), 4, 3).codebook)
        with pytest.raises(
            InputError, match=r"'layer.bias' is not factored; factored are: layer\.weight"
        ):
            file.factors("layer.bias")
        with pytest.raises(InputError, match="'bias' is not in the file"):
            file.factors("bias")


def test_tensors_outlive_the_file(path):
    with tersor.open(path) as file:
        bias, factors = file["layer.bias"], file.factors("layer.weight")
    assert bias.tolist() == [0, 1, 2, 3] and factors.recompose().shape == (6, 10)
    with pytest.raises(ValueError, match="closed"):
        file["layer.bias"]


def test_damage_is_found_where_it_is(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in the section of the unfactored tensors
    path.write_bytes(data)
    with tersor.open(path) as file:
        assert file["layer.weight"].shape == (6, 10)
        for use in (file.check_sections, lambda: file["layer.bias"], lambda: dict(file)):
            with pytest.raises(FileFormatError, match=r"model\.tersor: section 1 is damaged"):
                use()


def mixed_archive():
    """Unfactored tensors in several groups, with factored ones and an alias between."""
    factors = records.encode(random_factors((6, 10), 4, 3))
    draw = torch.Generator().manual_seed(0)
    entries = {
        "a": plain(torch.randn(9, generator=draw), Reason.VECTOR),
        "w": Entry((6, 10), torch.float32, factors),
        "empty": plain(torch.zeros(0, 4), Reason.EMPTY),
        "large": plain(torch.randn(50, generator=draw), Reason.LOSSLESS),
        "b": plain(torch.randn(7, generator=draw), Reason.VECTOR, rounded=True),
        "v": Entry((6, 10), torch.float32, Alias("w")),
        "c": plain(torch.arange(3), Reason.NOT_FLOAT),
    }
    return Archive(entries, 1)


@pytest.mark.parametrize("wanted", [["b"], ["large"], ["c", "a"], ["v", "empty"], ["w", "v", "b"]])
def test_streams_give_what_is_wanted_once(wanted, monkeypatch, sections_read):
    monkeypatch.setattr(unfactored, "GROUP_BYTES", 64)
    archive = mixed_archive()
    found = list(OpenFile(to_file_bytes(archive)).stream(wanted))
    assert {n for n, _ in found} == {archive.original(n) for n in wanted}
    assert len(found) == len({n for n, _ in found})
    for name, value in found:
        tensor = value.recompose() if isinstance(value, Factors) else value
        assert bits(tensor) == bits(archive.tensor(name))
    assert len(sections_read) < len(OpenFile(to_file_bytes(archive)).layout.stamps)


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.tersor").touch()
    with pytest.raises(FileFormatError, match=r"empty\.tersor: not a tersor file"):
        tersor.open(tmp_path / "empty.tersor")


@pytest.mark.parametrize("left", [0, 100, 5000, 60_000])
def test_a_file_that_is_cut_off_while_it_is_open(tmp_path, left):
    """Which ends the process if it is mapped into memory."""
    path, whole = tmp_path / "model.tersor", torch.randn(50_000, generator=generator())
    container.write(path, Archive({"a": plain(whole, Reason.VECTOR)}, 200_000))
    with open_file(path) as file:
        os.truncate(path, left)
        with pytest.raises(FileFormatError, match=r"model.tersor: section 0 is damaged"):
            file["a"]


def test_rows_of_a_tensor(path):
    with tersor.open(path) as file:
        for name in ("layer.weight", "layer.bias", "tied.weight"):
            assert torch.equal(file.rows(name, 1, 3), file[name][1:3])
        assert file.rows("layer.weight", 6, 6).shape == (0, 10)
        for name, start, stop in [("layer.weight", 5, 7), ("layer.weight", 3, 2), ("absent", 0, 1)]:
            with pytest.raises(InputError, match=f"no rows {start} to {stop} of '{name}'"):
                file.rows(name, start, stop)
