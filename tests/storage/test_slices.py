# SPDX-License-Identifier: Apache-2.0
"""Large latents are coded in slices of weight rows, each decoded alone."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from samples import random_factors, to_file_bytes

import tersor
from tersor import tiling
from tersor.coding import entropy, records
from tersor.coding.rate import analyse
from tersor.compression.fill import Version
from tersor.compression.resume import VERSIONS
from tersor.errors import FileFormatError
from tersor.factorization import weights
from tersor.factorization.rate_aware import STATES
from tersor.io import dense_tensors, export_safetensors
from tersor.storage import container
from tersor.storage.archive import Alias, Archive, Entry
from tersor.storage.opened import OpenFile
from tersor.storage.verify import verify
from tersor.tiling import BLOCK, Tiling, coding_order, cut, natural_order
from tersor.training.groups import factored_weights


@pytest.fixture
def small_slices(monkeypatch):
    monkeypatch.setattr(tiling, "SLICE", 1 << 14)


SHAPE, TILE = (300, 256), 4
"""Slices of 64 rows if those are small: 4, the last one longer."""


def random_weight(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=draw) * torch.rand(300, 1, generator=draw)


@given(st.integers(1, 10**5), st.integers(1, 5000), st.integers(1, 600))
def test_slices_are_whole_blocks_and_large(rows, row, tile):
    t = Tiling((rows, row), min(tile, row))
    assert sum(t.slices) == rows and t.slices == tiling.slices(rows, t.slice_rows)
    if len(t.slices) > 1:
        *before, last = t.slices
        assert set(before) == {t.slice_rows} and t.slice_rows <= last < 2 * t.slice_rows
        assert t.slice_rows * t.tiles_per_row % BLOCK == 0
        assert t.slice_rows * t.tiles_per_row * t.size >= tiling.SLICE
    else:
        assert t.slice_rows == 0


def test_a_weight_of_two_million_is_the_first_with_slices():
    assert Tiling((2**11 - 1, 2**10), 32).slices == (2**11 - 1,)
    assert Tiling((2**11, 2**10), 32).slices == (2**10, 2**10)
    assert Tiling((30522, 384), 384).slices == (4096,) * 6 + (30522 - 6 * 4096,)


@pytest.mark.parametrize("rows", [6, (6,), (2, 2, 2), (1, 5)])
def test_orders_are_inverse(rows):
    latent = torch.arange(2 * 18).reshape(2, 18)
    ordered = coding_order(latent, rows)
    assert torch.equal(natural_order(ordered, rows), latent)
    pairs = zip(cut(latent, rows), cut(ordered, rows), strict=True)
    assert all(torch.equal(coding_order(n, n.shape[1] // 3), o) for n, o in pairs)


@pytest.mark.parametrize("moments", [None, torch.eye(256) + 0.1])
@pytest.mark.parametrize("states", [1, STATES])
def test_the_solver_makes_latents_for_slices(small_slices, moments, states):
    factors = weights.factorize_weight(random_weight(), TILE, 0.3, moments=moments, states=states)
    encoded = records.encode(factors)
    assert len(encoded.streams) == 4 and encoded.coding.slice_rows == 64
    assert encoded.coding.states >= states
    back = records.decode(encoded, SHAPE, torch.float32)
    assert torch.equal(back.latent, factors.latent) and torch.equal(back.codebook, factors.codebook)


@pytest.mark.parametrize("moments", [None, torch.eye(256) + 0.1])
def test_slices_change_little(monkeypatch, moments):
    """Neither the error nor the bytes."""
    found = []
    for size in (1 << 30, 1 << 14):
        monkeypatch.setattr(tiling, "SLICE", size)
        factors = weights.factorize_weight(random_weight(), TILE, 0.3, moments=moments)
        error = float((random_weight() - factors.recompose()).square().sum())
        found.append((error, records.encode(factors).coded_bytes))
    (error, size), (error_of_slices, size_of_slices) = found
    assert error_of_slices == pytest.approx(error, rel=0.03)
    assert size_of_slices == pytest.approx(size, rel=0.03)  # slices of 16,000 weights


def test_prices_are_those_of_the_slices():
    """Bits of rows are the sums of what slices cost alone."""
    latent = (torch.randn(3, 200, generator=torch.Generator().manual_seed(0)) * 2).round()
    latent[:, 120:] *= 5
    whole = analyse(latent, (12, 8)).bits
    start = entropy.starting_level(latent)
    parts = [latent[:, :120], latent[:, 120:]]
    alone = [
        entropy._native.analyse(p.contiguous().numpy(), [rows], 1, start, 0).bits
        for p, rows in zip(parts, (12, 8), strict=True)
    ]
    assert whole == pytest.approx([sum(pair) for pair in zip(*alone, strict=True)])


def archive_of(slice_rows, seed=0):
    factors = random_factors((70, 256), 2, 2, seed)
    encoded = records.encode(factors, slice_rows=slice_rows)
    return Archive({"w": Entry((70, 256), torch.float32, encoded)}, 1), factors


@pytest.mark.parametrize("slice_rows, count", [(0, 1), (32, 2)])
def test_files_hold_slices(slice_rows, count):
    archive, factors = archive_of(slice_rows)
    data = to_file_bytes(archive)
    file = OpenFile(data)
    assert len(file.layout.stamps) == count and len(data) == container.size(archive)
    assert torch.equal(dense_tensors(file)["w"], factors.recompose())
    assert not verify(data).problems


def test_rows_of_a_weight_are_read_alone(monkeypatch):
    archive, factors = archive_of(32)
    file, decoded = OpenFile(to_file_bytes(archive)), []
    one = records.decode_slice
    monkeypatch.setattr(records, "decode_slice", lambda *a: decoded.append(a[2]) or one(*a))
    for start, stop, slices in ((0, 70, [0, 1]), (3, 9, [0]), (32, 33, [0, 1])):
        decoded.clear()
        assert torch.equal(file.rows("w", start, stop), factors.recompose()[start:stop])
        assert sorted(decoded) == slices


def test_a_weight_is_given_back_slice_by_slice(tmp_path, monkeypatch):
    archive, factors = archive_of(32)
    entry = archive.entries["w"]
    entries = {"w": entry, "tied": replace(entry, content=Alias("w"))}
    container.write(tmp_path / "m.tersor", replace(archive, entries=entries))
    joined, join = [], records.join
    monkeypatch.setattr(records, "join", lambda *a: joined.append(len(a[3])) or join(*a))
    export_safetensors(tmp_path / "m.tersor", tmp_path / "m.safetensors")
    assert joined == [1, 1] * 2  # one slice at a time
    for tensor in load_file(tmp_path / "m.safetensors").values():
        assert torch.equal(tensor, factors.recompose())


def test_damage_of_one_slice_is_found():
    archive, _ = archive_of(32)
    data = bytearray(to_file_bytes(archive))
    data[-3] ^= 1
    (problem,) = verify(bytes(data)).problems
    assert problem.startswith("w: section 1 is damaged")
    with pytest.raises(FileFormatError, match="section 1 is damaged"):
        OpenFile(bytes(data))["w"]


def test_sums_are_bounded_over_all_slices():
    """Large numbers of one row in one slice, of another row in the other."""
    codebook = torch.full((1, 2), 4095, dtype=torch.int16)
    latent = torch.zeros(2, 2 * BLOCK, dtype=torch.int16)
    latent[0, 0], latent[1, -1] = 4095, 4095
    coding, streams = entropy.encode(codebook, latent, 2 * BLOCK, BLOCK)
    forged = records.EncodedFactors(1, 1.0, 2, coding, streams)
    with pytest.raises(FileFormatError, match="too large for an exact product"):
        records.decode(forged, (2 * BLOCK, 1), torch.float32)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.sampled_from([1, 2]))
def test_threads_change_no_byte(seed, threads):
    archive, _ = archive_of(32, seed)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        again, _ = archive_of(32, seed)
    finally:
        torch.set_num_threads(before)
    assert to_file_bytes(again) == to_file_bytes(archive)


def test_a_weight_without_factors_has_no_slices(small_slices):
    encoded = records.zero(SHAPE, torch.float32, math.nan)
    assert encoded.streams == (b"",) and encoded.coding.slice_rows == 0


def test_trained_latents_stay_on_the_trellis_of_their_slices(small_slices, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(256, 300))
    model[0].weight.data = random_weight()
    tersor.compress(model, ratio=12)
    with torch.no_grad():
        for weight in factored_weights(model).values():
            weight.latent.add_(0.3)
    tersor.project(model, lagrangian=0.3)
    bits = float(tersor.rate_loss(model).detach())
    tersor.save(model, tmp_path / "m.tersor")
    with tersor.open(tmp_path / "m.tersor") as file:
        (field,) = file.layout.factored
        assert field.slices > 1 and field.detail.coding.states == STATES
        coded = sum(file.layout.stamps[i].size for i in file.layout.streams[field.name])
        assert 8 * coded == pytest.approx(bits, rel=0.01, abs=100)


def test_an_interrupted_run_remembers_slices():
    archive, _ = archive_of(32)
    content = archive.entries["w"].content
    again = VERSIONS.decode(VERSIONS.encode(Version(7, 0.5, content)))
    assert again.content.streams == content.streams and again.content.coding == content.coding
