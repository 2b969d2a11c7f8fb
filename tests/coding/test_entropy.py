# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import specified
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integers import KINDS, onto_trellis, structured

from tersor.coding import entropy
from tersor.coding.entropy import Coding
from tersor.coding.rate import LARGEST, TRELLISES
from tersor.errors import FileFormatError
from tersor.tiling import coding_order, natural_order

STATES = (1, *sorted(TRELLISES))


def latent_of(magnitudes, states, rows, seed=0):
    """In natural order, reachable in coding order."""
    return natural_order(torch.from_numpy(onto_trellis(magnitudes, states, seed)), rows)


def small_codebook(d, k, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.rint(rng.normal(0, 30, (d, k))).astype(np.int16))


def come_back(codebook, latent, rows):
    coding, (payload,) = entropy.encode(codebook, latent, rows)
    (d, k), n = codebook.shape, latent.shape[1]
    back = entropy.decode(payload, coding, d, k, n, rows)
    assert torch.equal(back[0], codebook) and torch.equal(back[1], latent)
    assert not payload.endswith(b"\0")
    return coding, payload


@given(
    st.sampled_from(STATES),
    st.sampled_from(KINDS),
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(1, 7),
    st.integers(1, 9),
    st.integers(0, 1000),
)
def test_factors_come_back(states, kind, d, k, rows, per_row, seed):
    latent = latent_of(structured(kind, k, rows * per_row, seed), states, rows, seed)
    coding, payload = come_back(small_codebook(d, k, seed), latent, rows)
    assert states == 1 or coding.states >= states or k == 0
    assert k or not payload


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("rows", [1, 3, 2500, 10_000])
def test_rows_longer_than_a_block_of_the_trellis_come_back(states, rows):
    latent = latent_of(structured("30", 2, 10_000 if rows != 3 else 9_999), states, rows)
    coding, _ = come_back(small_codebook(4, 2), latent, rows)
    assert coding.states == states


@given(st.data())
def test_any_integers_come_back(data):
    """Those that no trellis reaches are coded without one."""
    k, rows, per_row = (data.draw(st.integers(0, 4)) for _ in range(3))
    rows = max(rows, 1)
    values = st.integers(-LARGEST, LARGEST) | st.integers(-2, 2)
    size = k * rows * per_row
    latent = torch.tensor(data.draw(st.lists(values, min_size=size, max_size=size)))
    latent = latent.to(torch.int16).reshape(k, rows * per_row)
    coding, _ = come_back(small_codebook(2, k), latent, rows)
    assert coding.states == entropy.trellis_of(coding_order(latent, rows), rows)


def test_what_no_trellis_reaches_is_coded_without_one():
    latent = torch.ones(1, 8, dtype=torch.int16)  # odd, where state 0 has even numbers only
    assert come_back(small_codebook(2, 1), latent, 4)[0].states == 1


@settings(max_examples=40)
@given(
    st.sampled_from(STATES),
    st.sampled_from(KINDS),
    st.integers(1, 6),
    st.integers(1, 8),
    st.integers(0, 255),
    st.integers(0, 1000),
)
def test_it_is_the_coder_of_the_specification(states, kind, outer, inner, start, seed):
    """In both directions, to the last byte, from any starting level."""
    codebook = small_codebook(3, 2, seed)
    ordered = onto_trellis(structured(kind, 2, outer * inner, seed), states, seed)
    columns = codebook.T.contiguous().numpy()
    payload = entropy._native.encode(columns, 255 - start, ordered, outer, states, start)
    coder = specified.Encoder()
    specified.code(coder, columns.tolist(), 3, 1, 255 - start)
    specified.code(coder, ordered.tolist(), outer, states, start)
    assert payload == coder.finish()
    decoder = specified.Decoder(payload)
    empty = [[0] * 3] * 2, [[0] * ordered.shape[1]] * 2
    assert specified.code(decoder, empty[0], 3, 1, 255 - start) == columns.tolist()
    assert specified.code(decoder, empty[1], outer, states, start) == ordered.tolist()


def entropy_bits(integers):
    """Empirical entropy of independent integers, all together."""
    _, counts = np.unique(integers, return_counts=True)
    shares = counts / counts.sum()
    return -(counts * np.log2(shares)).sum()


@pytest.mark.parametrize("spread", [0.3, 0.6, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("source", ["normal", "laplace"])
@pytest.mark.parametrize("rows", [1, 50, 4000])
def test_independent_integers_take_little_more_than_their_entropy(source, spread, rows):
    rng = np.random.default_rng(0)
    integers = np.rint(getattr(rng, source)(0, spread, (4, 40_000))).astype(np.int16)
    codebook = torch.ones(1, 4, dtype=torch.int16)
    _, (payload,) = entropy.encode(codebook, torch.from_numpy(integers), rows)
    assert len(payload) <= 1.01 * entropy_bits(integers) / 8 + 64


def test_scales_of_rows_and_columns_are_learnt():
    """Far less than what one table for all of them would take."""
    rng = np.random.default_rng(0)
    scales = np.exp2(rng.uniform(-3, 5, (4, 1, 1)) + rng.uniform(-2, 2, (1, 100, 1)))
    integers = np.rint(rng.laplace(0, 1, (4, 100, 200)) * scales).astype(np.int16)
    latent = torch.from_numpy(integers.reshape(4, -1))
    _, (payload,) = entropy.encode(torch.ones(1, 4, dtype=torch.int16), latent, 100)
    apart = sum(entropy_bits(part) for row in integers for part in row)
    assert apart < 8 * len(payload) < 1.15 * apart
    assert 8 * len(payload) < 0.85 * entropy_bits(integers)


def test_zeros_take_next_to_nothing():
    zeros = torch.zeros(3, 100_000, dtype=torch.int16)
    _, payload = come_back(torch.ones(2, 3, dtype=torch.int16), zeros, 100)
    assert len(payload) < 60
    assert entropy.encode(torch.zeros(4, 0).short(), torch.zeros(0, 20).short(), 4)[1] == (b"",)


def test_a_long_silence_is_forgotten_soon():
    """Scales have a limit, or a row of zeros would take them where no return is in sight."""
    rng = np.random.default_rng(0)
    integers = np.rint(rng.laplace(0, 3, (2, 20_000))).astype(np.int16)
    integers[0] = 0
    _, (payload,) = entropy.encode(torch.ones(1, 2).short(), torch.from_numpy(integers), 100)
    assert len(payload) <= 1.015 * entropy_bits(integers[1]) / 8 + 64


def damaged(payload):
    yield "longer", payload + b"\1\0\0\0\1"
    yield "a zero at the end", payload + b"\0"
    yield "zeros at the end", payload + bytes(9)


@pytest.mark.parametrize("states", STATES)
def test_longer_streams_are_refused(states):
    latent = latent_of(structured("3", 4, 50), states, 10)
    coding, (payload,) = entropy.encode(small_codebook(4, 4), latent, 10)
    for what, data in damaged(payload):
        print(what)
        with pytest.raises(FileFormatError, match="data left over after the last one"):
            entropy.decode(data, coding, 4, 4, 50, 10)


@pytest.mark.parametrize("states", [1, 16])
def test_integers_too_large_are_refused(states):
    """All bits one: the interval's lower end, where every decision says more."""
    coding = Coding(states, 128, 255)
    with pytest.raises(FileFormatError, match="an integer is too large"):
        entropy.decode(b"", coding, 1, 1, 1000, 10)


@given(
    st.binary(max_size=200),
    st.sampled_from(STATES),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 8),
    st.integers(1, 40),
)
def test_any_bytes_are_read_or_refused(data, states, first, second, k, rows):
    coding = Coding(states, first, second)
    try:
        codebook, latent = entropy.decode(data, coding, 3, k, rows * 12, rows)
    except FileFormatError as error:
        assert "coded integers are damaged" in str(error)
        return
    assert codebook.shape == (3, k) and latent.shape == (k, rows * 12)
    for part in (codebook, latent):
        assert not part.numel() or int(part.int().abs().max()) <= LARGEST
    ordered = coding_order(latent, rows).numpy()
    assert entropy._native.reachable(ordered, rows, states)
    again = entropy._native.encode(
        codebook.T.contiguous().numpy(), first, ordered, rows, states, second
    )
    if data[:4] != bytes([255] * 4):  # which is outside of all intervals
        assert len(again) <= len(data)  # the shortest of what decodes to this


@pytest.mark.slow
@given(st.integers(0, 2**32), st.integers(0, 7), st.sampled_from(STATES))
def test_damage_in_a_long_stream_is_read_or_refused(position, bit, states):
    latent = latent_of(structured("30", 3, 3000), states, 30)
    coding, (payload,) = entropy.encode(small_codebook(9, 3), latent, 30)
    changed = bytearray(payload)
    changed[position % len(payload)] ^= 1 << bit
    try:
        back = entropy.decode(bytes(changed), coding, 9, 3, 3000, 30)
    except FileFormatError:
        return
    assert int(back[1].int().abs().max()) <= LARGEST


@pytest.mark.parametrize("largest", [LARGEST + 1, 2**15 - 1])
def test_the_native_encoder_refuses_what_is_too_large(largest):
    matrix = np.full((1, 4), largest, np.int16)
    with pytest.raises(ValueError, match="an integer is too large"):
        entropy._native.encode(matrix, 128, matrix, 2, 1, 128)


def test_runs_must_fit_the_columns():
    matrix = np.zeros((1, 10), np.int16)
    for outer in (0, 3, -5):
        with pytest.raises(ValueError, match="runs do not fit"):
            entropy._native.encode(matrix, 128, matrix, outer, 1, 128)
