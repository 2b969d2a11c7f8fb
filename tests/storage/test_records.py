import math

import pytest
import torch
from samples import random_factors

from tersor.errors import FileFormatError, InputError
from tersor.factors import Factors
from tersor.storage import records


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


def test_zero_takes_no_payload():
    encoded = records.zero((30, 20), torch.float16, snr=0.0)
    assert encoded.payload == b"" and encoded.rank == 0
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
        ({"latent": torch.full((3, 18), 2048, dtype=torch.int16)}, "integers up to 2047 .* 2048"),
        ({"latent": torch.full((3, 18), -2048, dtype=torch.int16)}, "2048"),
    ],
)
def test_what_no_file_can_hold_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        records.encode(changed(**fields))


def test_sums_too_large_to_be_exact_are_refused():
    """A payload may be valid and still hold integers whose product is not."""
    rank = 10
    codebook = torch.full((1, rank), 2047, dtype=torch.int16)
    latent = torch.full((rank, 4), 2047, dtype=torch.int16)
    ones = Factors(codebook, torch.ones_like(latent), 1.0, (4, 1))
    encoded = records.encode(ones)
    forged = records.EncodedFactors(
        1, 1.0, encoded.codebook, records.fit(records.count_magnitudes(latent)), b""
    )
    matrices = [(codebook.numpy().astype("int32"), encoded.codebook)]
    matrices.append((latent.numpy().astype("int32"), forged.latent))
    payload = records.entropy.encode(matrices)
    forged = records.EncodedFactors(1, 1.0, encoded.codebook, forged.latent, payload)
    with pytest.raises(FileFormatError, match="too large for an exact product"):
        records.decode(forged, (4, 1), torch.float32)
