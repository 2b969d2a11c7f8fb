# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from samples import bits, random_factors

from tersor import factors as module
from tersor.errors import InputError
from tersor.factors import Factors, multiply


def test_sums_of_zero_have_the_sign_of_the_scale():
    """Whatever the signs of what is added up: the sum is a whole number, which has no -0."""
    codebook = torch.tensor([[-1], [1]], dtype=torch.int16)
    latent = torch.zeros(1, 3, dtype=torch.int16)
    for scale in (0.5, -0.5):
        weight = Factors(codebook, latent, scale, (3, 2)).recompose()
        assert torch.equal(weight.signbit(), torch.full((3, 2), scale < 0))


@pytest.mark.parametrize("shape, tile", [((50, 7), 3), ((9, 4, 3, 3), 9), ((6,), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("piece", [1, 40, 1 << 18])
def test_pieces_make_the_weight(shape, tile, dtype, piece, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", piece)
    factors = random_factors(shape, tile, 3, dtype=dtype)
    tiles = multiply(factors.codebook, factors.latent, factors.scale)
    assert bits(factors.recompose()) == bits(factors.tiling.join(tiles).to(dtype))
    rows = [len(part) for part in factors.pieces()]
    assert sum(rows) == shape[0] and max(rows) <= max(1, piece // factors.tiling.row_length)


def test_real_factors_are_multiplied_at_once(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 1)
    factors = Factors(torch.randn(3, 2), torch.randn(2, 30), 1.0, (10, 9))
    assert len(list(factors.pieces())) == 1 and factors.recompose().shape == (10, 9)


def test_real_factors_have_the_bytes_of_their_elements():
    factors = Factors(torch.randn(3, 2), torch.randn(2, 30), 1.0, (10, 9))
    assert not factors.quantized and factors.nbytes == 4 * (3 * 2 + 2 * 30)
    assert factors.bits_per_weight == pytest.approx(8 * 264 / 90)


def test_shapes_that_do_not_fit_together_are_refused():
    codebook, latent = torch.zeros(3, 2), torch.zeros(2, 29)
    with pytest.raises(InputError, match=r"a latent of shape \(2, 30\), got \(2, 29\)"):
        Factors(codebook, latent, 1.0, (10, 9))


def test_integers_whose_sums_are_not_exact_are_refused():
    most = torch.full((1, 2), 4096, dtype=torch.int16)  # sums of 2**25
    with pytest.raises(InputError, match=r"sums may reach 33554432, at most 16777216"):
        Factors(most, most.T.contiguous(), 1.0, (1, 1))
    half = torch.tensor([[4096], [0]], dtype=torch.int16)
    assert Factors(most, half, 1.0, (1, 1)).recompose().item() == 2**24
