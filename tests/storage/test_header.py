# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from samples import archives, plain, random_factors

from tersor.coding import records
from tersor.coding.entropy import Coding
from tersor.errors import FileFormatError, InputError
from tersor.storage import header
from tersor.storage.archive import Entry, Reason
from tersor.storage.cursor import Reader, Writer


def written(entries):
    out = Writer()
    header.write(out, entries)
    return bytes(out.data)


@given(archives())
def test_fields_come_back(archive):
    fields = header.read(Reader(written(archive.entries)))
    assert [f.name for f in fields] == list(archive.entries)
    for field, entry in zip(fields, archive.entries.values(), strict=True):
        assert (field.shape, field.dtype) == (entry.shape, entry.dtype)


def test_alike_names_share_their_beginnings():
    entries = {
        f"transformer.encoder.layer.{i}.bias": plain(torch.zeros(1), Reason.VECTOR)
        for i in range(9)
    }
    alone = len(written(dict(list(entries.items())[:1])))
    assert len(written(entries)) <= alone + 8 * 13


@pytest.mark.parametrize(
    "snr, kept", [(12.344, 12.34), (math.nan, math.nan), (math.inf, 300), (-math.inf, -300)]
)
def test_signal_to_noise_ratio_is_kept_to_a_hundredth(snr, kept):
    factors = records.encode(random_factors((6, 10), 4, 3), snr)
    (field,) = header.read(Reader(written({"w": Entry((6, 10), torch.float32, factors)})))
    assert field.detail.snr == pytest.approx(kept, nan_ok=True)


def test_names_that_are_not_unicode_are_refused():
    """Pickled checkpoints may hold them."""
    with pytest.raises(InputError, match=r"'a\\ud800' is not valid Unicode"):
        written({"a\ud800": plain(torch.zeros(1), Reason.VECTOR)})


@pytest.mark.parametrize("states", [1, 4, 8, 16, 32, 64])
def test_codings_come_back(states):
    factors = replace(
        records.encode(random_factors((6, 10), 4, 3)), coding=Coding(states, 255, 0), streams=()
    )
    (field,) = header.read(Reader(written({"w": Entry((6, 10), torch.float32, factors)})))
    assert field.detail == replace(factors, snr=field.detail.snr)
    assert field.detail.coding == Coding(states, 255, 0)


def test_factors_take_few_bytes():
    """The columns of a tensor's factors: tile, rank, scale, ratio, trellis, two levels, slices."""
    entries = {
        str(i): Entry((6, 10), torch.float32, records.zero((6, 10), torch.float32, 0.0))
        for i in range(2)
    }
    one = dict(list(entries.items())[:1])
    assert len(written(entries)) - len(written(one)) == 3 + 5 + 2 + 4 + 2 + 4


def test_tensors_of_more_elements_than_the_format_has_are_refused():
    """Empty ones too: nonzero lengths alone count, as in strides."""
    empty = plain(torch.zeros(0), Reason.EMPTY)
    most, more = (1 << 24, 0, 1 << 24), (1 << 24, 0, (1 << 24) + 1)
    (field,) = header.read(Reader(written({"w": replace(empty, shape=most)})))
    assert field.shape == most
    with pytest.raises(FileFormatError, match=r"a tensor of shape .* is too large"):
        header.read(Reader(written({"w": replace(empty, shape=more)})))
