# SPDX-License-Identifier: Apache-2.0
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import bits, generator, tensors

from tersor.errors import FileFormatError
from tersor.storage import planes
from tersor.storage.planes import elements


def encoded(*group, exact=True):
    return planes.encode([elements(t, exact) for t in group])


def decoded(payload, *group, exact=True):
    """What the payload holds, of the types and shapes of a group."""
    back = [torch.empty(t.shape, dtype=t.dtype) for t in group]
    planes.decode(payload, [elements(t, exact) for t in back], "it")
    return back


@given(st.lists(tensors(), min_size=1, max_size=5), st.booleans())
def test_tensors_come_back_bit_for_bit(group, exact):
    back = decoded(encoded(*group, exact=exact), *group, exact=exact)
    assert [bits(t) for t in back] == [bits(t) for t in group]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(5, 3).T,
        torch.ones(1).expand(4, 2),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.randn(3, dtype=torch.complex64).conj().imag,
        torch.randn(4, requires_grad=True),
        torch.tensor([0x7FC12345, 0x7F800001, -1, -(2**31), 1]).int().view(torch.float32),
    ],
    ids=["transposed", "expanded", "conjugate", "negated", "trained", "payloads of NaN"],
)
def test_views_and_special_values_come_back(tensor):
    (back,) = decoded(encoded(tensor), tensor)
    assert bits(back) == bits(tensor.resolve_conj().resolve_neg())


@pytest.mark.parametrize(
    "dtype, most", [(torch.float32, 0.86), (torch.bfloat16, 0.70), (torch.complex64, 0.86)]
)
def test_exponents_take_less_than_three_bits(dtype, most):
    """A plane of nothing but exponents; the sign is with the mantissa."""
    values = torch.randn(300_000, dtype=dtype, generator=generator())
    assert len(encoded(values)) < most * values.nbytes
    assert len(encoded(values)) < len(encoded(values, exact=False))


def test_one_sign_is_best_in_front():
    """As rounded biases and variances of normalisation are kept."""
    values = (torch.rand(3000, generator=generator()) + 0.5).bfloat16()
    assert len(encoded(values, exact=False)) < len(encoded(values))


@pytest.mark.parametrize("size", [1, 5000, 100_000])
def test_noise_grows_by_little(size):
    noise = torch.randint(256, (size,), dtype=torch.uint8, generator=generator())
    assert len(encoded(noise)) <= 1.001 * size + 12


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(100_000), torch.arange(100) % 7 == 0, torch.arange(512), torch.ones(9000).half()],
)
def test_what_repeats_vanishes(tensor):
    assert len(encoded(tensor)) < 0.08 * tensor.nbytes + 20


def test_each_plane_is_coded_in_its_own_way():
    """Noise beside what repeats: neither spoils the other."""
    low = torch.randint(2**24, (60_000,), generator=generator())
    assert len(encoded(low.int())) < 0.76 * 4 * len(low)


def test_the_stream_is_one():
    """Any inflater reads it to its end."""
    values = torch.randn(50_000, generator=generator())
    inflater = zlib.decompressobj(-15)
    assert len(inflater.decompress(encoded(values))) == values.nbytes
    assert inflater.eof and not inflater.unused_data


@pytest.mark.parametrize("size", [0, 11, 13, 1 << 40])
def test_inflate_gives_the_claimed_size_or_refuses(size):
    payload = encoded(torch.arange(12, dtype=torch.uint8))
    with pytest.raises(FileFormatError, match=f"it is damaged: {size} bytes expected"):
        planes.inflate(payload, size, "it")


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"\xff" + b])
def test_damaged_groups_are_refused_before_anything_is_written(change):
    tensor = torch.arange(12, dtype=torch.uint8)
    back = torch.full_like(tensor, 77)
    with pytest.raises(FileFormatError, match="it is damaged"):
        planes.decode(change(encoded(tensor)), [elements(back, True)], "it")
    assert (back == 77).all()


def test_no_stream_expands_more_than_the_limit():
    payload = zlib.compressobj(9, zlib.DEFLATED, -15)
    size = len(payload.compress(bytes(10**7)) + payload.flush())
    assert 0.99 * planes.MOST_EXPANSION < 10**7 / size <= planes.MOST_EXPANSION
