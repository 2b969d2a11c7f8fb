# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from tersor.errors import InputError
from tersor.storage.archive import Reason
from tersor.storage.classify import FEWEST_WEIGHTS, keep, reason_to_keep


def matrix(value=1.0, dtype=torch.float32):
    return torch.full((16, 16), value, dtype=dtype)


@pytest.mark.parametrize(
    "tensor, reason",
    [
        (matrix(), None),
        (matrix(dtype=torch.bfloat16), None),
        (torch.ones(2, 3, 4, 5, 6), None),
        (torch.ones(FEWEST_WEIGHTS - 1, 1), Reason.SMALL),
        (torch.ones(1000), Reason.VECTOR),
        (torch.tensor(1.0), Reason.VECTOR),
        (torch.zeros(0, 5), Reason.EMPTY),
        (matrix(3).long(), Reason.NOT_FLOAT),
        (matrix().bool(), Reason.NOT_FLOAT),
        (matrix().to(torch.float8_e4m3fn), Reason.NOT_FLOAT),
        (matrix().to(torch.complex64), Reason.NOT_FLOAT),
        (matrix(1e300, torch.float64), Reason.RANGE),
        (matrix(1e-300, torch.float64), Reason.RANGE),
        (matrix(1e30), Reason.RANGE),
        (matrix(60_000, torch.float16), Reason.RANGE),
        (matrix(0.0), None),
        (torch.full((300,), math.inf), Reason.VECTOR),
    ],
)
def test_reasons(tensor, reason):
    assert reason_to_keep("w", tensor) == reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(20, 20), (3, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(value, shape, dtype):
    weight = torch.zeros(shape, dtype=dtype)
    weight[1, 2] = value
    with pytest.raises(InputError, match=r"'a\.weight' has 1 elements that are NaN or infinite"):
        reason_to_keep("a.weight", weight)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_vectors_with_nan_are_refused(shape):
    with pytest.raises(InputError, match=r"'a\.bias' has . elements that are NaN"):
        reason_to_keep("a.bias", torch.full(shape, math.nan))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: torch.eye(3).to_sparse(), "'t' is sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "'t' is sparse"),
        (lambda: torch.empty(3, device="meta"), "'t' is .* without values"),
        (lambda: torch.nn.LazyLinear(3).weight, "'t' is .* without values"),
        (lambda: torch.nested.nested_tensor([torch.ones(2)]), "'t' is .* nested"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8), "type torch.qint8"),
        (lambda: torch.ones(2, dtype=torch.complex128), "complex128, which cannot be stored"),
        (lambda: torch.empty([1] * 65), "'t' has 65 axes"),
    ],
)
def test_what_no_file_can_hold_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        reason_to_keep("t", make())


@pytest.mark.parametrize(
    "name, dtype, reason, rounded",
    [
        ("norm.weight", torch.float32, Reason.VECTOR, True),
        ("norm.running_var", torch.float64, Reason.VECTOR, True),
        ("lstm.bias_ih_l0", torch.float32, Reason.SMALL, True),
        ("norm.weight", torch.float16, Reason.VECTOR, False),
        ("norm.weight", torch.float32, Reason.LEFT_DENSE, False),
        ("positions", torch.float32, Reason.VECTOR, False),
        ("weights.mean", torch.float32, Reason.VECTOR, False),
        ("norm.num_batches_tracked", torch.int64, Reason.NOT_FLOAT, False),
    ],
)
def test_what_is_harmless_is_rounded(name, dtype, reason, rounded):
    entry = keep(name, torch.ones(5, dtype=dtype), reason)
    assert entry.dtype == dtype
    assert (entry.content.values.dtype == torch.bfloat16) == rounded


@pytest.mark.parametrize("value", [math.inf, 1e300])
def test_what_bfloat16_cannot_hold_is_exact(value):
    tensor = torch.tensor([value, 1.0], dtype=torch.float64)
    entry = keep("norm.running_var", tensor, Reason.VECTOR)
    assert torch.equal(entry.content.values, tensor)
