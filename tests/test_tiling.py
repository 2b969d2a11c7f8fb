# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.tiling import Tiling, is_tileable, window_size


@st.composite
def tilings(draw):
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)))
    return Tiling(shape, draw(st.integers(1, math.prod(shape[1:]))))


@given(tilings(), st.sampled_from([torch.float32, torch.int16, torch.float64]))
def test_join_is_the_inverse_of_split(tiling, dtype):
    weight = (torch.arange(math.prod(tiling.shape)) + 1).reshape(tiling.shape).to(dtype)
    tiles = tiling.split(weight)
    assert tiles.shape == (tiling.size, tiling.count) and tiles.dtype == dtype
    assert torch.equal(tiling.join(tiles), weight)


@given(tilings())
def test_only_padding_is_added(tiling):
    weight = torch.arange(math.prod(tiling.shape)).reshape(tiling.shape) + 1
    tiles = tiling.split(weight)
    assert tiles.sum() == weight.sum()
    assert int((tiles == 0).sum()) == tiling.shape[0] * tiling.padding
    assert 0 <= tiling.padding < tiling.size


def test_windows_of_a_convolution_are_tiles():
    weight = torch.randn(4, 3, 3, 3)
    tiles = Tiling((4, 3, 3, 3), 9).split(weight)
    assert torch.equal(tiles[:, 3 * 2 + 1], weight[2, 1].flatten())


def test_segments_of_inputs_are_tiles():
    weight = torch.arange(12.0).reshape(2, 6)
    assert Tiling((2, 6), 4).split(weight).T.tolist() == [
        [0, 1, 2, 3],
        [4, 5, 0, 0],
        [6, 7, 8, 9],
        [10, 11, 0, 0],
    ]


def test_views_are_split_by_their_elements():
    weight = torch.randn(6, 4).T
    assert torch.equal(Tiling((4, 6), 4).join(Tiling((4, 6), 4).split(weight)), weight)


@pytest.mark.parametrize("shape, window", [((4, 3), 1), ((4, 3, 3, 3), 9), ((4, 3, 5), 5)])
def test_window_size(shape, window):
    assert window_size(shape) == window


@pytest.mark.parametrize(
    "shape, tileable", [((), False), ((5,), False), ((5, 0), False), ((1, 1), True)]
)
def test_is_tileable(shape, tileable):
    assert is_tileable(shape) == tileable
