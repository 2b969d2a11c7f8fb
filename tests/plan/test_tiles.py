import math

import pytest
import torch

from tersor.factorization.rate_aware import PRICE
from tersor.plan.tiles import candidates, choose, tile_of_signs


@pytest.mark.parametrize(
    "shape",
    [
        (64, 64, 3, 3),
        (10, 64),
        (1, 1),
        (7, 1),
        (1, 5000),
        (30_522, 384),
        (4, 3, 5),
        (2, 1, 3, 3, 3),
    ],
)
def test_candidates_suit_the_weight(shape):
    sizes = candidates(shape)
    row = math.prod(shape[1:])
    assert sizes[0] == 1 and sizes == sorted(set(sizes))
    assert all(d <= row and d <= 1024 for d in sizes)
    # Codebooks of d squared elements are an eighth of the weight at most.
    assert all(d == 1 or 8 * d * d <= math.prod(shape) for d in sizes)


def test_kernel_windows_and_input_segments_are_candidates():
    assert {1, 9, 27} <= set(candidates((64, 64, 3, 3)))
    assert {1, 8, 32, 128, 384} <= set(candidates((30_522, 384)))


def test_weights_without_structure_stay_single():
    """A codebook would cost bytes and gain nothing."""
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    assert choose(weight, 1.0).tile == 1


def test_structure_is_used():
    """Alike windows: one column of a codebook says almost all of nine weights."""
    draw = torch.Generator().manual_seed(0)
    strengths = torch.randn(64, 64, 1, 1, generator=draw)
    window = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    weight = strengths * window + 0.05 * torch.randn(64, 64, 3, 3, generator=draw)
    assert choose(weight, 0.5).tile % 9 == 0


@pytest.mark.parametrize("shape", [(1, 1), (3000, 1), (1, 3000), (5, 7, 1, 1), (600, 512)])
def test_any_shape_gets_a_tile(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert choose(weight, 0.5).tile in candidates(shape)
    assert choose(torch.zeros(shape), 0.5).tile in candidates(shape)


def test_signs_are_as_many_as_a_weight_has_bits():
    level = math.log(2) * 2 / PRICE  # variance of a bit that costs what it saves, in steps
    for bits, tile in ((2, 8), (1, 16), (0.5, 32), (3.2, 5)):
        assert tile_of_signs((400, 96), (4**bits - 1) / level) == tile
    assert tile_of_signs((400, 96), 0.0) == 48  # two, as with 64
    assert tile_of_signs((500, 20), 1e-30) == 20
    assert tile_of_signs((4, 100), 1e-30) == 5  # else the codebook would outweigh them
    assert tile_of_signs((400, 96), 1e30) == 1
