# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from tersor.compression.curve_file import Point, read
from tersor.errors import InputError

POINT = {"bytes": 9, "predicted_drop": 0.5, "measured": 90}
CURVE = {"points": [POINT], "metric": "top-1", "dense": 91.5, "dense_bytes": 1000}


def written(folder, content):
    path = folder / "curve.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_points_come_by_size(tmp_path):
    other = {"bytes": 5, "predicted_drop": None, "measured": None, "step": 0.1}
    curve = read(written(tmp_path, CURVE | {"points": [POINT, other], "more": 1}))
    assert curve.points == (Point(5, None, None), Point(9, 0.5, 90.0))
    assert (curve.metric, curve.dense, curve.dense_bytes) == ("top-1", 91.5, 1000)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "[" * 100_000,
        '{"points": []}',
        {k: v for k, v in CURVE.items() if k != "dense"},
        CURVE | {"points": []},
        CURVE | {"points": {"a": 1}},
        CURVE | {"points": [3]},
        CURVE | {"points": [POINT | {"bytes": 0}]},
        CURVE | {"points": [POINT | {"bytes": 1.5}]},
        CURVE | {"points": [POINT | {"bytes": True}]},
        CURVE | {"points": [POINT | {"bytes": 2**70}]},
        CURVE | {"points": [POINT | {"measured": "<b>"}]},
        CURVE | {"points": [POINT | {"measured": float("nan")}]},
        CURVE | {"points": [POINT | {"predicted_drop": float("inf")}]},
        CURVE | {"metric": 3},
        CURVE | {"dense": []},
        CURVE | {"dense": 10**400},
        CURVE | {"dense_bytes": None},
    ],
)
def test_what_is_no_curve(tmp_path, content):
    with pytest.raises(InputError, match="is not what `tersor curve` writes"):
        read(written(tmp_path, content))


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not what"):
        read(tmp_path / "bytes.json")
