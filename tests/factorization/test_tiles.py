# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from tersor.factorization.rate_aware import LAGRANGIAN
from tersor.factorization.tiles import candidates, choose, is_stack, tile_of_binary


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
    level = math.log(2) * 2 / LAGRANGIAN  # variance of a bit that costs what it saves, in steps
    for bits, tile in ((2, 8), (1, 16), (0.5, 32), (3.2, 5)):
        assert tile_of_binary((400, 96), (4**bits - 1) / level) == tile
    assert tile_of_binary((400, 96), 0.0) == 48  # two, as with 64
    assert tile_of_binary((500, 20), 1e-30) == 20
    assert tile_of_binary((4, 100), 1e-30) == 5  # else the codebook would outweigh them
    assert tile_of_binary((400, 96), 1e30) == 1


def test_tiles_of_stacked_matrices_are_segments_of_their_rows():
    """Rows alike but for their strength, of which a kernel's windows would see nothing."""
    draw = torch.Generator().manual_seed(0)
    strengths = torch.randn(16, 40, 6, 1, generator=draw)
    segment = torch.randn(8, generator=draw)
    weight = (strengths * segment + 0.05 * torch.randn(16, 40, 6, 8, generator=draw)).flatten(2)
    assert choose(weight, 0.5, stack=True).tile == 8
    for columns in (33, 50, 96, 100):
        weight = torch.randn(4, 60, columns, generator=draw) * 5
        assert columns % choose(weight, 1.0, stack=True).tile == 0


@pytest.mark.parametrize(
    "name, shape",
    [
        ("model.layers.0.mlp.experts.gate_up_proj", (8, 64, 128)),
        ("model.layers.0.mlp.experts.down_proj", (128, 768, 2048)),
        ("block_sparse_moe.input_linear.weight", (32, 1024, 1536)),
        ("blocks.0.att.time_maa_w2", (5, 32, 768)),
    ],
)
def test_stacks_of_matrices(name, shape):
    assert is_stack(name, shape)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("encoder.pos_conv_embed.conv.weight_v", (1024, 64, 128)),
        ("pos_conv_embed.conv.parametrizations.weight.original1", (1280, 80, 128)),
        ("_model.stft.forward_basis_buffer", (258, 1, 256)),
        ("decoder.conv.weight", (512, 512, 16)),
        ("conv1.weight", (768, 80, 3)),
        ("conv.weight", (64, 64, 3, 3)),
        ("patch.weight", (768, 3, 16, 16)),
        ("pos_embed", (1, 197, 768)),
        ("head.weight", (1000, 768)),
        ("bias", (64,)),
    ],
)
def test_kernels_and_all_else_are_no_stacks(name, shape):
    assert not is_stack(name, shape)


def test_a_sample_of_larger_rows_than_the_others_has_a_size():
    """The bits that it has too many are taken away again, but not more than there are."""
    torch.manual_seed(0)
    weight = 1e-3 * torch.randn(4096, 64)
    sampled = torch.linspace(0, 4095, 512).round().long()
    weight[sampled] = torch.randn(512, 64)
    for step_size in (1.0, 3.0):
        chosen = choose(weight, step_size)
        assert chosen.nbytes is not None and 0 <= chosen.nbytes < 4096 * 64
