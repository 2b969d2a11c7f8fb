import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import FileFormatError
from tersor.factorization.rate import CURVATURES, LARGEST, EntropyModel, count_magnitudes, fit
from tersor.storage import entropy


def model_of(matrix):
    return fit(count_magnitudes(torch.from_numpy(matrix)))


@st.composite
def matrices(draw):
    rows, columns = draw(st.integers(0, 5)), draw(st.integers(0, 40))
    spread = draw(st.sampled_from([0, 0.3, 1, 20, 600]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    values = np.rint(rng.laplace(0, spread, (rows, columns)))
    return np.clip(values, -LARGEST, LARGEST).astype(np.int32)


@settings(max_examples=50)
@given(st.lists(matrices(), max_size=3))
def test_matrices_come_back_under_fitted_models(coded):
    models = [model_of(m) for m in coded]
    payload = entropy.encode(list(zip(coded, models, strict=True)))
    shapes = [(model, m.shape[1]) for model, m in zip(models, coded, strict=True)]
    for before, after in zip(coded, entropy.decode(payload, shapes), strict=True):
        np.testing.assert_array_equal(before, after)


@given(
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, CURVATURES - 1),
    st.integers(0, 60) | st.sampled_from([LARGEST - 1, LARGEST]),
    st.integers(0, 1000),
)
def test_integers_come_back_under_any_model(zero, decay, curvature, largest, seed):
    """Also under models that do not suit them, with the rarest integers there are."""
    model = EntropyModel(np.array([zero, 0]), np.array([decay, 255]), curvature, largest)
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-largest, largest + 1, (2, 30)).astype(np.int32)
    matrix[0, :2] = largest, -largest
    payload = entropy.encode([(matrix, model)])
    np.testing.assert_array_equal(entropy.decode(payload, [(model, 30)])[0], matrix)


@pytest.mark.parametrize("spread", [0.2, 1.0, 5.0])
def test_length_is_what_the_model_says(spread):
    matrix = np.rint(np.random.default_rng(0).laplace(0, spread, (4, 5000))).astype(np.int32)
    counts = count_magnitudes(torch.from_numpy(matrix))
    expected = float((counts * fit(counts).bits()).sum()) / 8
    actual = len(entropy.encode([(matrix, fit(counts))]))
    assert abs(actual - expected) <= 8 + 1e-4 * expected
    shares = counts / counts.sum(axis=1, keepdims=True)
    signs = counts[:, 1:].sum()
    at_least = -(counts * np.log2(np.where(counts, shares, 1))).sum() + signs
    assert 8 * actual < 1.01 * at_least + 64


def test_nothing_takes_nothing():
    zeros = np.zeros((3, 100), np.int32)
    assert entropy.encode([(zeros, model_of(zeros))]) == b""


def damaged(payload: bytes):
    yield "cut", payload[:-4]
    yield "no words", payload[:-1]
    yield "longer", payload + b"\1\0\0\0"
    yield "zero at the end", payload + bytes(4)


def test_damaged_streams_are_refused():
    matrix = np.rint(np.random.default_rng(0).normal(0, 3, (4, 50))).astype(np.int32)
    model = model_of(matrix)
    payload = entropy.encode([(matrix, model)])
    for what, data in damaged(payload):
        print(what)
        with pytest.raises(FileFormatError, match=r"coded integers"):
            entropy.decode(data, [(model, 50)])


def test_tables_of_many_rows_are_made_piece_by_piece(monkeypatch):
    """A file of 300 bytes may claim thousands of rows of thousands of magnitudes."""
    asked = []
    original = EntropyModel.frequencies

    def frequencies(self):
        asked.append(len(self.zero))
        return original(self)

    monkeypatch.setattr(EntropyModel, "frequencies", frequencies)
    rows = 1000
    model = EntropyModel(np.zeros(rows, np.int64), np.zeros(rows, np.int64), 0, 3)
    entropy.decode(entropy.encode([(np.zeros((rows, 1), np.int32), model)]), [(model, 1)])
    assert max(asked) <= 64 and sum(asked) == 2 * rows


def test_costs_count_the_sign():
    model = EntropyModel(np.array([16]), np.array([0]), 4, 1)
    assert model.bits()[0] == pytest.approx([1, 2], abs=1e-3)
    assert math.isclose((2.0 ** -model.bits()[0] * [1, 2]).sum(), 1)
