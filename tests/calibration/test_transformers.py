# SPDX-License-Identifier: Apache-2.0
"""Models of Hugging Face, with random weights, calibrated and fine-tuned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import tersor
from tersor.cli.user_code import for_checkpoint
from tersor.compression.driver import compress_source
from tersor.errors import InputError
from tersor.storage.checkpoint import open_checkpoint

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


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 60}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config).eval()


def texts(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(count)
    return [{"input_ids": torch.randint(60, (8, 32), generator=generator)} for _ in range(count)]


def conv1d_weights(model: nn.Module) -> list[str]:
    kind = transformers.pytorch_utils.Conv1D
    return [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, kind)]


def test_transposed_linear_layers_are_measured():
    """Hugging Face's Conv1D, of which GPT-2 consists."""
    model, seen = gpt2(), list[torch.Tensor]()
    layer = model.transformer.h[1].mlp.c_proj
    with layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1))):
        found = tersor.calibrate(model, texts(3))
    assert not found.unseen and len(conv1d_weights(model)) == 8
    assert sorted(found.inputs_first) == sorted(conv1d_weights(model))
    assert not {*found.skipped} & {*conv1d_weights(model)}
    name = "transformer.h.1.mlp.c_proj.weight"
    x = torch.cat(seen[:3])
    torch.testing.assert_close(found.moments[name], x.T @ x / len(x))
    assert found.metric(name).shape == (256, 256) and found.importance[name] > 0


@pytest.mark.slow
def test_transposed_linear_layers_gain_by_calibration():
    """The output is closer at the same size, and closer still once layers make up for others."""
    dense, held = gpt2(), texts(2)
    plain, calibrated = copy.deepcopy(dense), copy.deepcopy(dense)
    size = tersor.compress(plain, ratio=8).nbytes
    tersor.compress(calibrated, target_size=size, calibration=tersor.calibrate(dense, texts(12)))
    error = tersor.output_error(calibrated, dense, held)
    assert error < 0.8 * tersor.output_error(plain, dense, held)
    weights = calibrated.state_dict()
    tersor.reconstruct(calibrated, dense, texts(12))
    assert tersor.output_error(calibrated, dense, held) < error
    renewed = calibrated.state_dict()
    for name in conv1d_weights(dense):
        assert not torch.equal(renewed[f"{name}_factors.latent"], weights[f"{name}_factors.latent"])


@pytest.mark.slow
def test_compress_with_data_uses_all_of_it():
    dense, model = gpt2(), gpt2()
    plain = gpt2()
    size = tersor.compress(plain, ratio=8).nbytes
    report = tersor.compress(model, target_size=size, data=texts(16))
    assert report.nbytes <= size and report.output_error is not None
    assert not any("without calibration" in warning for warning in report.warnings)
    better = tersor.output_error(model, dense, texts(2))
    assert better < 0.7 * tersor.output_error(plain, dense, texts(2))


def test_the_command_line_knows_which_are_transposed(tmp_path):
    """Also of weights that the checkpoint has and the model does not."""
    dense = gpt2()
    weights = {n: w.clone() for n, w in dense.state_dict().items()} | {"more": torch.ones(32, 32)}
    torch.save(weights, tmp_path / "model.pt")
    source = open_checkpoint(tmp_path / "model.pt")
    found = for_checkpoint(tersor.calibrate(dense, texts(3)), dense, source)
    assert sorted(found.inputs_first) == sorted(conv1d_weights(dense))
    archive = compress_source(source, ratio=6, calibration=found)
    assert all(archive.is_factored(name) for name in found.inputs_first)


def test_a_weight_that_is_read_along_both_axes_is_left_out():
    layer = transformers.pytorch_utils.Conv1D(24, 24)
    other = nn.Linear(24, 24)
    other.weight = layer.weight
    found = tersor.calibrate(nn.Sequential(layer, other), [torch.randn(64, 24)])
    assert "different axes" in found.skipped["0.weight"] and not found.inputs_first


def test_a_conv1d_with_a_forward_of_its_own_is_left_out():
    class Doubled(transformers.pytorch_utils.Conv1D):
        def forward(self, x):
            return super().forward(2 * x)

    found = tersor.calibrate(nn.Sequential(Doubled(24, 24)), [torch.randn(64, 24)])
    assert "inputs are not measured" in found.skipped["0.weight"]
