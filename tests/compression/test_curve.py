# SPDX-License-Identifier: Apache-2.0
"""The curve: what it predicts comes true."""

import numpy as np
import pytest
import torch
from samples import source_of, to_file_bytes, weights_like_trained

from tersor.compression.compressor import Compressor
from tersor.compression.curve import trace
from tersor.compression.overrides import Overrides
from tersor.errors import BudgetError, InputError
from tersor.io import dense_tensors

STATE = weights_like_trained(layers=6)
SOURCE = source_of({n: t for n, t in STATE.items() if "weight" in n})


def share_of_error(archive):
    dense = dense_tensors(archive)
    squares = [(float((dense[n] - STATE[n]).square().sum()), n) for n in SOURCE.names]
    return sum(e for e, _ in squares) / sum(float(STATE[n].square().sum()) for _, n in squares)


def test_the_error_is_predicted_from_two_passes():
    solved = []
    watched = lambda message, _: solved.append(message)  # noqa: E731
    compressor = Compressor(SOURCE, progress=watched)
    curve = trace(compressor, SOURCE.nbytes, points=9)
    assert sum(m.startswith("predicting") for m in solved) == 2 * len(SOURCE.names)
    assert [p.nbytes for p in curve.points] == sorted(p.nbytes for p in curve.points)
    assert SOURCE.nbytes / curve.points[-1].nbytes == pytest.approx(4, rel=1e-3)
    assert all(a.error >= b.error for a, b in zip(curve.points, curve.points[1:], strict=False))
    for point in curve.points[1:-1:2]:
        archive = compressor.within(point.nbytes)
        assert len(to_file_bytes(archive)) <= point.nbytes
        # At this size other tiles may be chosen than where the passes were made.
        assert point.error == pytest.approx(share_of_error(archive), rel=0.5)
        assert point.measured is point.predicted_drop is None


def test_quality_is_measured_at_a_few_sizes_and_predicted_between():
    """Where quality follows from the error, the prediction is that of this law."""
    asked = []

    def measure(archive):
        asked.append(archive)
        return 90.0 if archive is None else 90 - 20 * share_of_error(archive) ** 0.5

    curve = trace(Compressor(SOURCE), SOURCE.nbytes, points=10, measure=measure, metric="top1")
    assert asked[0] is None and len(asked) == 5
    assert (curve.dense, curve.metric, curve.dense_bytes) == (90, "top1", SOURCE.nbytes)
    assert [p.measured is None for p in curve.points] == [i not in (0, 3, 6, 9) for i in range(10)]
    drops = np.array([p.predicted_drop for p in curve.points])
    assert np.all(np.diff(drops) <= 0)
    for point in curve.points:
        if point.measured is not None:
            assert point.predicted_drop == pytest.approx(90 - point.measured)
        else:
            true = 90 - measure(Compressor(SOURCE).within(point.nbytes))
            assert point.predicted_drop == pytest.approx(true, rel=0.3)


def test_noise_of_an_evaluation_does_not_bend_the_curve():
    values = iter([90.0, 70.0, 91.0, 90.5, 89.0])
    curve = trace(Compressor(SOURCE), SOURCE.nbytes, measure=lambda _: next(values), metric="m")
    drops = [p.predicted_drop for p in curve.points]
    assert drops == sorted(drops, reverse=True)


def test_a_weight_that_factors_hold_exactly_has_a_curve():
    source = source_of({"w": torch.ones(200, 200)})
    curve = trace(Compressor(source), source.nbytes, measure=lambda _: 50.0, metric="m")
    assert [p.predicted_drop for p in curve.points] == [0] * 16


def test_curves_that_cannot_be():
    with pytest.raises(InputError, match="a curve has 2 points at least, got 1"):
        trace(Compressor(SOURCE), SOURCE.nbytes, points=1)
    with pytest.raises(BudgetError, match="there is no curve: its largest size would be"):
        trace(Compressor(SOURCE, overrides=Overrides(["*"])), SOURCE.nbytes)
    zeros = source_of({"w": torch.zeros(500, 500)})
    with pytest.raises(InputError, match="no weight is factored"):
        trace(Compressor(zeros), zeros.nbytes)
