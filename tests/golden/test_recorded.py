# SPDX-License-Identifier: Apache-2.0
"""Twelve compressions give the files that are recorded; `recorded` says how to renew them.

The bytes are compared where torch computes as on the machine that recorded them. Elsewhere last
bits of sums differ, and with them integers at the edge of rounding, so that the sizes are compared.
"""

import json

import pytest
from recorded import JOBS, RECORD, arithmetic, run

EXPECTED = json.loads(RECORD.read_text())
INDEPENDENT = {"lossless"}
"""Jobs that compute nothing in floating point."""


@pytest.fixture(scope="module")
def is_same_arithmetic():
    return arithmetic() == EXPECTED["arithmetic"]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_a_recorded_job_gives_the_same_file(job, is_same_arithmetic):
    found, expected = run(job), EXPECTED["jobs"][job.__name__]
    if is_same_arithmetic or job.__name__ in INDEPENDENT:
        assert found == expected
    else:
        assert found["nbytes"] == pytest.approx(expected["nbytes"], rel=0.1)


def test_every_job_is_recorded():
    assert list(EXPECTED["jobs"]) == [job.__name__ for job in JOBS] and len(JOBS) == 12
