# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from tersor.compression.overrides import Overrides, parse_bits
from tersor.errors import InputError

NAMES = {n: [n] for n in ("conv1.weight", "conv2.weight", "head.0.weight")}
NAMES |= {"embed.weight": ["embed.weight", "decoder.weight"]}


def test_patterns_choose_weights():
    resolved = Overrides(["head.*"], {"conv?.weight": 4, "*1.weight": 4}).resolve(NAMES)
    assert resolved.keep == {"head.0.weight"}
    assert resolved.bits == {"conv1.weight": 4, "conv2.weight": 4}


def test_any_name_of_a_tied_weight_counts():
    assert Overrides(["decoder.*"]).resolve(NAMES).keep == {"embed.weight"}


def test_only_matrices_that_are_not_kept_are_looked_up():
    matrices = {"head.0.weight", "embed.weight"}
    assert Overrides(lookup=["*"]).resolve(NAMES, matrices).lookup == matrices
    assert Overrides(["head*"], lookup=["*"]).resolve(NAMES, matrices).lookup == {"embed.weight"}
    assert Overrides((), {"*": 2}, ["decoder.*"]).resolve(NAMES, matrices).lookup == {
        "embed.weight"
    }
    with pytest.raises(
        InputError, match=r"'conv\*'.*look-up kernels matches no matrix, but conv1.weight, conv"
    ):
        Overrides(lookup=["*", "conv*"]).resolve(NAMES, matrices)
    with pytest.raises(InputError, match=r"'hed.\*' matches none of the 4 weights"):
        Overrides(lookup=["hed.*"]).resolve(NAMES, matrices)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (Overrides(["hed.*"]), r"'hed.\*' matches none of the 4 weights .*: head.0.weight"),
        (Overrides(["CONV1.weight"]), "similar names: conv1.weight"),
        (Overrides((), {"conv3.weight": 2}), "similar names: conv2.weight, conv1.weight"),
        (Overrides(["conv1.*"], {"conv*": 2}), "'conv1.weight' is to be kept by one .* 2 bits by"),
        (Overrides((), {"conv*": 2, "conv1*": 3}), r"is given 2 bits by .* 3 bits by 'conv1\*'"),
    ],
)
def test_patterns_that_match_nothing_or_contradict(overrides, message):
    with pytest.raises(InputError, match=message):
        overrides.resolve(NAMES)


def test_without_weights_there_are_no_similar_names():
    with pytest.raises(InputError, match=r"none of the 0 weights that are to be factored$"):
        Overrides(["*"]).resolve({})


@pytest.mark.parametrize("bits", [0, -1, math.nan, math.inf, "4", None])
def test_bits_that_are_no_positive_number(bits):
    with pytest.raises(InputError, match="bits of 'w' must be a positive number, got"):
        Overrides((), {"w": bits})


@pytest.mark.parametrize(
    "wrong", [{"keep": "head.*"}, {"keep": [3]}, {"bits": ["a=4"]}, {"lookup": "*"}]
)
def test_patterns_of_wrong_types(wrong):
    with pytest.raises(InputError, match=r"must be a (list|dict) of patterns"):
        Overrides(**wrong)


def test_bits_as_text():
    assert parse_bits(["conv1*=4", "a=b=0.5", "conv1*=4"]) == {"conv1*": 4, "a=b": 0.5}


@pytest.mark.parametrize("text", ["conv1", "=4", "conv1=", "conv1=four", "conv1=nan"])
def test_text_that_says_no_bits(text):
    with pytest.raises(InputError, match="is not of the form PATTERN=NUMBER"):
        parse_bits([text])


def test_text_that_says_different_bits():
    with pytest.raises(InputError, match="gives 'a' both 4 and 5"):
        parse_bits(["a=4", "a=5"])
