import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import bits, tensors

from tersor.errors import FileFormatError
from tersor.storage import kept


@given(st.lists(tensors(), max_size=5))
def test_tensors_come_back_bit_for_bit(group):
    specs = [(t.dtype, tuple(t.shape)) for t in group]
    back = kept.decode(kept.encode(group), specs, "a group")
    assert [bits(t) for t in back] == [bits(t) for t in group]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(5, 3).T,
        torch.ones(1).expand(4, 2),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.randn(3, dtype=torch.complex64).conj().imag,
        torch.randn(4, requires_grad=True),
        torch.tensor([float("nan"), -0.0, float("inf")]),
    ],
    ids=["transposed", "expanded", "conjugate", "negated", "trained", "special"],
)
def test_views_come_back(tensor):
    (back,) = kept.decode(kept.encode([tensor]), [(tensor.dtype, tuple(tensor.shape))], "it")
    assert bits(back) == bits(tensor.resolve_conj().resolve_neg())


@given(st.lists(st.integers(0, 3 * kept.GROUP_BYTES)))
def test_groups_are_consecutive_and_limited(sizes):
    groups = list(kept.group(sizes))
    assert [i for g in groups for i in g] == list(range(len(sizes)))
    for members in groups:
        assert len(members) == 1 or sum(sizes[i] for i in members) <= kept.GROUP_BYTES


def test_exponents_come_together():
    """Sorted by significance, floating-point numbers compress better than as they lie in memory."""
    import zlib

    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert len(kept.encode([values])) < 0.93 * len(zlib.compress(values.numpy().tobytes(), 9))


@pytest.mark.parametrize("size", [0, 11, 13, 1 << 40])
def test_inflate_gives_the_claimed_size_or_refuses(size):
    payload = kept.encode([torch.arange(12, dtype=torch.uint8)])
    with pytest.raises(FileFormatError, match=f"it is damaged: {size} bytes expected"):
        kept.inflate(payload, size, "it")


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"\xff" + b])
def test_damaged_groups_are_refused(change):
    payload = kept.encode([torch.arange(12, dtype=torch.uint8)])
    with pytest.raises(FileFormatError, match="it is damaged"):
        kept.inflate(change(payload), 12, "it")
