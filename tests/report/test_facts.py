# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from safetensors.torch import save_file
from samples import from_file_bytes, generator, random_factors, small_archive

from tersor.coding import records
from tersor.compression.driver import compress_source
from tersor.errors import InputError
from tersor.factors import Factors
from tersor.report.facts import MAGNITUDES, MOST_ATOMS, gather
from tersor.storage import container
from tersor.storage.archive import Archive, Entry
from tersor.storage.checkpoint import open_checkpoint
from tersor.storage.opened import open_file


def entry(factors, snr=math.nan):
    return Entry(factors.shape, factors.dtype, records.encode(factors, snr))


def facts_of(folder, *, dense=None, **entries):
    path = folder / "model.tersor"
    container.write(path, Archive(entries, 10_000))
    return gather(path, dense)


@pytest.fixture
def compressed(tmp_path):
    """A checkpoint and a file made from it: convolutions and a matrix, of few directions."""
    draw = generator()
    mixing = torch.randn(9, 9, generator=draw) * torch.logspace(0, -1.5, 9)[:, None]
    state = {
        "conv.weight": (torch.randn(64, 32, 9, generator=draw) @ mixing).reshape(64, 32, 3, 3),
        "fc.weight": torch.randn(60, 100, generator=draw),
        "bias": torch.randn(60, generator=draw),
    }
    save_file(state, tmp_path / "dense.safetensors")
    archive = compress_source(open_checkpoint(tmp_path / "dense.safetensors"), ratio=16)
    container.write(tmp_path / "model.tersor", archive)
    return tmp_path / "model.tersor", tmp_path / "dense.safetensors", state


def test_parts_add_up_and_are_those_of_the_file(compressed):
    path, _, _ = compressed
    archive, facts = from_file_bytes(path.read_bytes()), gather(path)
    parts = facts.parts()
    assert sum(parts.values()) == path.stat().st_size
    assert parts["Unfactored tensors"] == sum(map(len, container.unfactored_sections(archive)))
    assert parts["Latents"] + parts["Codebooks"] == sum(t.nbytes for t in facts.report.factored)
    assert 0 < parts["Codebooks"] < parts["Latents"]


def test_codebook_bytes_are_what_a_file_grows_by(tmp_path):
    """Of a latent that takes next to nothing, the payload is the codebook."""
    factors = random_factors((4, 30), 30, 20)
    empty = Factors(factors.codebook, torch.zeros(20, 4, dtype=torch.int16), 1.0, (4, 30))
    (layer,) = facts_of(tmp_path, w=entry(empty)).layers
    assert abs(layer.codebook_bytes - layer.summary.nbytes) <= 12
    assert layer.codebook_bytes > 200


def test_the_spectrum_is_that_of_the_dense_tiles(compressed):
    path, dense, state = compressed
    layer = gather(path, dense).layers[0]
    assert layer.summary.name == "conv.weight" and layer.summary.tile == 9
    expected = torch.linalg.svdvals(state["conv.weight"].reshape(-1, 9).double())
    torch.testing.assert_close(torch.tensor(layer.spectrum).double(), expected, rtol=1e-5, atol=0)


def test_without_a_checkpoint_it_is_that_of_the_recomposed_tiles(tmp_path):
    factors = random_factors((40, 20), 20, 3)
    (layer,) = facts_of(tmp_path, w=entry(factors)).layers
    expected = torch.linalg.svdvals(factors.recompose().double())
    found = torch.tensor(layer.spectrum).double()
    torch.testing.assert_close(found[:3], expected[:3], rtol=1e-5, atol=0)
    assert len(found) == 20 and found[3:].max() < 1e-6 * found[0]


def test_fewer_tiles_than_elements_of_one(tmp_path):
    factors = random_factors((3, 50), 50, 2)
    (layer,) = facts_of(tmp_path, w=entry(factors)).layers
    assert len(layer.spectrum) == 3


def test_signal_to_noise_is_measured_or_as_in_the_file(compressed):
    path, dense, state = compressed
    from_file, measured = gather(path), gather(path, dense)
    assert [layer.summary for layer in from_file.layers] == list(from_file.report.factored)
    assert from_file.snr() is None
    file, noise = open_file(path), 0.0
    for a, b in zip(from_file.layers, measured.layers, strict=True):
        assert b.summary.snr == pytest.approx(a.summary.snr, abs=0.0051)
        weight = file.tensor(b.summary.name)
        noise += float(((weight - state[b.summary.name]) ** 2).sum())
    signal = sum(float((state[n] ** 2).sum()) for n in ("conv.weight", "fc.weight"))
    assert measured.snr() == pytest.approx(10 * math.log10(signal / noise), abs=1e-3)


def test_latents_are_counted_by_magnitude(tmp_path):
    values = [0, 0, 1, -1, 2, -3, 4, 7, 8, -15, 16, 31, -32, 400]
    latent = torch.tensor([values], dtype=torch.int16)
    factors = Factors(torch.ones(1, 1, dtype=torch.int16), latent, 1.0, (14, 1))
    facts = facts_of(tmp_path, w=entry(factors), v=entry(factors))
    assert dict(zip(MAGNITUDES, facts.layers[0].latents, strict=True)) == {
        "0": 2, "1": 2, "2–3": 2, "4–7": 2, "8–15": 2, "16–31": 2, "32+": 2
    }  # fmt: skip
    assert facts.latents() == (4,) * 7


def test_atoms_are_the_strongest_columns_first(tmp_path):
    codebook = torch.tensor([[1] * 9, [2, 0, 0, 0, -4, 0, 0, 0, 0]], dtype=torch.int16).T
    latent = torch.tensor([[1, 0, 0, 0], [5, 5, 5, 5]], dtype=torch.int16)
    factors = Factors(codebook.contiguous(), latent, 1.0, (2, 2, 3, 3))
    (layer,) = facts_of(tmp_path, w=entry(factors)).layers
    assert layer.atoms.shape == (2, 1, 3, 3)
    assert layer.atoms[0, 0].tolist() == [[0.5, 0, 0], [0, -1, 0], [0, 0, 0]]
    assert layer.atoms[1].unique().tolist() == [1]


@pytest.mark.parametrize(
    ("shape", "tile", "rank", "expected"),
    [
        ((4, 6, 3, 3), 27, 4, (4, 3, 3, 3)),
        ((4, 6, 5), 5, 3, (3, 1, 1, 5)),
        ((4, 2, 2, 3, 3), 18, 2, (2, 1, 6, 3)),
        ((8, 8, 3, 3), 9, 40, (MOST_ATOMS, 1, 3, 3)),
        ((4, 6, 3, 3), 6, 2, None),
        ((4, 6, 1, 1), 3, 2, None),
        ((4, 6), 3, 2, None),
        ((4, 6, 3, 3), 9, 0, None),
    ],
)
def test_which_tiles_have_atoms(tmp_path, shape, tile, rank, expected):
    (layer,) = facts_of(tmp_path, w=entry(random_factors(shape, tile, rank))).layers
    assert (None if layer.atoms is None else layer.atoms.shape) == expected


def test_weights_that_overflow_have_no_spectrum(tmp_path):
    factors = random_factors((8, 6), 6, 3)
    huge = Factors(factors.codebook, factors.latent, 1e38, (8, 6))
    (layer,) = facts_of(tmp_path, w=entry(huge)).layers
    assert layer.spectrum == ()


def test_a_file_without_factors(tmp_path):
    facts = facts_of(tmp_path)
    assert facts.layers == () and sum(facts.latents()) == 0 and facts.snr() is None
    assert sum(facts.parts().values()) == facts.report.nbytes == facts.header_bytes


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (None, "no tensor 'layer.weight'"),
        (torch.zeros(6, 11), r"shape \(6, 11\) in the checkpoint and \(6, 10\) in the file"),
        (torch.full((6, 10), math.nan), "NaN or infinite weights in the checkpoint"),
    ],
)
def test_checkpoints_of_another_model(tmp_path, tensor, message):
    state = {"other": torch.zeros(1)} if tensor is None else {"layer.weight": tensor}
    save_file(state, tmp_path / "dense.safetensors")
    container.write(tmp_path / "model.tersor", small_archive())
    with pytest.raises(InputError, match=message):
        gather(tmp_path / "model.tersor", tmp_path / "dense.safetensors")


def test_one_layer_at_a_time(compressed):
    path, dense, _ = compressed
    seen = []
    gather(path, dense, lambda name, done: seen.append((name, done)))
    assert [name for name, _ in seen] == ["conv.weight", "fc.weight"]
    assert seen[0][1] == 0 < seen[1][1] < 1
