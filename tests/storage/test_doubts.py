# SPDX-License-Identifier: Apache-2.0
"""When a compressed model is doubted, and what is said then."""

import math

import pytest

from tersor.storage.doubts import differ, doubts, predicted_error
from tersor.storage.summary import TensorSummary


def weight(name, snr, rank=3):
    return TensorSummary(name, (64, 64), "F32", 100, 8, rank, snr)


def said(*tensors, **facts):
    return doubts(tensors, predicted=predicted_error(tensors), **facts)


def test_a_good_model_is_not_doubted():
    assert said(weight("a", 20.0), weight("b", 13.5)) == ()
    assert said() == () and predicted_error(()) is None


def test_the_weakest_weight_is_named_with_what_to_do():
    """As Silero VAD at 16 times: one weight of seven at 7 dB, and half of the decisions wrong."""
    (text,) = said(weight("conv1", 14.9), weight("conv2", 6.98), weight("conv3", 23.7))
    assert "1 weight is below 12 dB of signal to noise: 'conv2' (7.0)" in text
    assert "predicted, without data, to differ by about 45 %" in text
    for remedy in ("lower ratio", "--keep", "--bits", "--data"):
        assert remedy in text


def test_many_weak_weights_are_counted_the_weakest_first():
    (text,) = said(*(weight(f"w{i}", 9.0 - i) for i in range(8)))
    assert "8 weights are below 12 dB of signal to noise: 'w7' (2.0), 'w6' (3.0)" in text
    assert "and 5 more" in text


def test_weights_that_got_no_bits():
    text, _ = said(weight("big", 30.0), weight("tiny", 0.0, rank=0))
    assert "1 weight got no bits and became zero: 'tiny'" in text
    assert "small beside others counts little" in text and "--keep" in text


def test_normalisation_that_is_not_matched():
    """As MobileNetV1 at 8 and 10 times: all above 13 dB, and hardly a class is right."""
    statistics = TensorSummary("bn.running_var", (64,), "F32", 128)
    (text,) = said(weight("a", 13.5), statistics)
    assert "normalisation still has the dense model's statistics" in text
    assert "--data" in text and "match_normalization" in text
    assert said(weight("a", 25.0), statistics) == ()
    assert said(weight("a", 13.5), statistics, measured=0.05) == ()


def test_zeros_are_no_loss():
    assert said(weight("a", 20.0), weight("zeros", 300.0, rank=0)) == ()


def test_what_is_not_known_is_not_predicted():
    """After training ratios are not known; that of a few is none of the model's."""
    assert predicted_error([weight("a", None), weight("b", 1.0)]) is None
    assert said(weight("a", None), weight("b", None, rank=0)) == ()


def test_tables_that_are_added_do_not_cut_the_others_off():
    tensors = weight("a", 20.0), weight("embeddings.position_embeddings.weight", 0.0, rank=0)
    assert predicted_error(tensors) == pytest.approx(0.1)
    (text,) = said(*tensors)
    assert "got no bits" in text


def test_what_is_measured_settles_it():
    weak = weight("a", 5.0)
    assert said(weak, measured=0.03) == ()
    (text,) = said(weak, measured=0.5)
    assert text.startswith("outputs differ by 50 % on batches held out from calibration. ")
    assert "--data" not in text


def test_a_prediction_from_calibration_says_so():
    (text,) = doubts([weight("a", 5.0)], predicted=0.4, calibrated=True)
    assert text.startswith("outputs are predicted, from calibration, to differ by about 40 %")
    assert doubts([weight("a", 5.0)], predicted=0.1, calibrated=True) == ()


def test_how_much_outputs_differ_in_words():
    assert differ() == ""
    assert differ(measured=0.0312) == (
        "outputs differ by 3.1 % on batches held out from calibration"
    )
    assert differ(predicted=0.0312) == (
        "outputs are predicted, without data, to differ by about 3.1 %"
    )


def test_names_cannot_steer_a_terminal():
    (text,) = said(weight("\x1b[2J", 1.0))
    assert "\x1b" not in text


def test_no_ratio_is_no_ratio():
    assert predicted_error([weight("a", -math.inf)]) == math.inf
