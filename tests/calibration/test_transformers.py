# SPDX-License-Identifier: Apache-2.0
"""Models of Hugging Face, with random weights, calibrated and fine-tuned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import tersor
from tersor.errors import InputError

transformers = pytest.importorskip("transformers", reason="models of Hugging Face")


def t5() -> nn.Module:
    sizes = dict(vocab_size=60, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0)
    )


def bart() -> nn.Module:
    sizes = dict(vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=1)
    sides = dict(encoder_attention_heads=2, decoder_attention_heads=2)
    widths = dict(encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=32)
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(**sizes, **sides, **widths)
    )


BOTH = pytest.mark.parametrize("make", [t5, bart])


def pair(make):
    torch.manual_seed(0)
    dense = make().eval()
    model = copy.deepcopy(dense)
    tersor.compress(model, ratio=3)
    return dense, model


def batches(*without: str) -> list[transformers.BatchEncoding]:
    draw = torch.Generator().manual_seed(1)
    made = []
    for _ in range(3):
        ids, labels = (torch.randint(3, 60, (8, n), generator=draw) for n in (10, 6))
        mask = torch.ones_like(ids)
        mask[:, 8:] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return [
        transformers.BatchEncoding({n: v for n, v in b.items() if n not in without}) for b in made
    ]


@BOTH
def test_calibration_makes_inputs_of_the_decoder_of_labels(make):
    dense, _ = pair(make)
    found = tersor.calibrate(dense, batches())
    names = [n for n in found.moments if "decoder" in n]
    assert names and not [n for n in found.unseen if "decoder" in n]
    shifted = dense.prepare_decoder_input_ids_from_labels
    given = [{**b, "decoder_input_ids": shifted(b["labels"])} for b in batches()]
    again = tersor.calibrate(dense, given)
    for name in found.moments:
        assert torch.equal(found.moments[name], again.moments[name])
    assert found.importance == again.importance  # which a loss has no part in


@pytest.mark.slow
@BOTH
def test_fine_tuning_with_the_loss_of_the_model(make):
    _, model = pair(make)
    result = tersor.finetune(model, batches(), epochs=8, lr=3e-3)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    batch = batches()[0]
    with torch.no_grad():
        assert 0 < model(**batch).loss < 1.5 * result.history[-1]["loss"]


@pytest.mark.slow
@BOTH
def test_a_teacher_needs_no_labels(make):
    dense, model = pair(make)
    shifted = dense.prepare_decoder_input_ids_from_labels
    with_decoder = [
        {**a, "decoder_input_ids": shifted(b["labels"])}
        for a, b in zip(batches("labels"), batches(), strict=True)
    ]
    runs = [
        tersor.finetune(copy.deepcopy(model), b, teacher=dense, epochs=1)
        for b in (batches(), with_decoder)
    ]
    assert runs[0].history[0]["loss"] == pytest.approx(runs[1].history[0]["loss"], rel=1e-5)


def test_what_the_decoder_lacks_is_explained():
    dense, model = pair(t5)
    for work in (
        lambda: tersor.calibrate(dense, batches("labels")),
        lambda: tersor.finetune(model, batches("labels"), teacher=dense, epochs=1),
    ):
        with pytest.raises(InputError, match=r"called with .*batch.*raised ValueError"):
            work()
