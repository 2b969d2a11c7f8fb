# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from samples import random_factors

from tersor.coding import entropy, records
from tersor.errors import FileFormatError, InputError
from tersor.factorization.weights import factorize_weight
from tersor.factors import Factors


@pytest.mark.parametrize(
    "shape, tile, rank",
    [((6, 10), 4, 3), ((8,), 1, 1), ((4, 3, 3, 3), 9, 9), ((5, 7), 7, 20), ((3, 2), 1, 0)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_factors_come_back(shape, tile, rank, dtype):
    factors = random_factors(shape, tile, rank, dtype=dtype)
    encoded = records.encode(factors)
    assert encoded.rank == rank and encoded.nbytes == factors.nbytes
    back = records.decode(encoded, shape, dtype)
    assert torch.equal(back.codebook, factors.codebook)
    assert torch.equal(back.latent, factors.latent)
    assert back.scale == factors.scale
    assert torch.equal(back.recompose(), factors.recompose())


def test_zero_takes_no_bytes():
    encoded = records.zero((30, 20), torch.float16, snr=0.0)
    assert encoded.streams == (b"",) and encoded.rank == 0
    assert not records.decode(encoded, (30, 20), torch.float16).recompose().any()


def changed(**fields):
    factors = random_factors((6, 10), 4, 3)
    values = {name: getattr(factors, name) for name in Factors.__dataclass_fields__} | fields
    return Factors(**values)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"codebook": torch.rand(4, 3)}, "real numbers"),
        ({"scale": math.nan}, "scale is nan"),
        ({"scale": 1e39}, "scale is inf"),
        ({"dtype": torch.int32}, "int32"),
        ({"dtype": torch.float8_e5m2}, "float8"),
        ({"shape": (18, 3)}, r"tiles of 4 .* \(18, 3\)"),
        ({"latent": torch.full((3, 18), 4096, dtype=torch.int16)}, "integers up to 4095 .* 4096"),
        ({"latent": torch.full((3, 18), -(2**15), dtype=torch.int16)}, "32768"),
    ],
)
def test_what_no_file_can_hold_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        records.encode(changed(**fields))


def test_sums_too_large_to_be_exact_are_refused():
    """A stream may be valid and still hold integers whose product is not."""
    rank = 10
    codebook = torch.full((1, rank), 4095, dtype=torch.int16)
    latent = torch.full((rank, 4), 4095, dtype=torch.int16)
    coding, streams = entropy.encode(codebook, latent, 4)
    forged = records.EncodedFactors(1, 1.0, rank, coding, streams)
    with pytest.raises(FileFormatError, match="too large for an exact product"):
        records.decode(forged, (4, 1), torch.float32)


@pytest.mark.parametrize("states", [1, 4, 8, 16, 32, 64])
def test_factors_of_the_solver_come_back(states):
    """Their latents are on a trellis in coding order, which the file names."""
    weight = torch.randn(30, 7, 3, 3, generator=torch.Generator().manual_seed(0))
    factors = factorize_weight(weight, 9, 0.8, states=states)
    encoded = records.encode(factors)
    assert encoded.coding.states == states
    back = records.decode(encoded, factors.shape, factors.dtype)
    assert torch.equal(back.codebook, factors.codebook)
    assert torch.equal(back.latent, factors.latent)


def test_coding_does_not_change_the_factors():
    factors = random_factors((6, 10), 4, 3)
    before = factors.codebook.clone(), factors.latent.clone()
    assert records.encode(factors) == records.encode(factors)
    assert torch.equal(factors.codebook, before[0]) and torch.equal(factors.latent, before[1])
