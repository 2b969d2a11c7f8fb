# SPDX-License-Identifier: Apache-2.0
"""Text that a model draws to be calibrated with."""

import pytest
import torch

import tersor

transformers = pytest.importorskip("transformers", reason="pip install 'tersor[transformers]'")

from transformers import (  # noqa: E402
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tersor.errors import InputError  # noqa: E402
from tersor.transformers import generated  # noqa: E402

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 64, "vocab_size": 96}


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def test_tokens_are_drawn_from_the_model():
    model = llama()
    with torch.no_grad():  # after token t comes t + 1, nearly always
        model.model.embed_tokens.weight.copy_(torch.randn(96, 32))
        model.lm_head.weight.copy_(20 * model.model.embed_tokens.weight.roll(1, 0))
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    for batch in generated(model, sequences=9, length=50):
        tokens = batch["input_ids"]
        follows = (tokens[:, 1:] == (tokens[:, :-1] + 1) % 96).float().mean()
        assert follows > 0.8


@pytest.mark.parametrize("bos", [1, None])
def test_it_is_the_same_each_time_and_changes_nothing(bos):
    model = llama().train()
    model.config.bos_token_id = bos
    state = torch.random.get_rng_state()
    first, second = (generated(model, sequences=10, length=16) for _ in range(2))
    other = generated(model, sequences=10, length=16, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert [batch["input_ids"].shape for batch in first] == [(8, 16), (2, 16)]
    for one, same, changed in zip(first, second, other, strict=True):
        assert torch.equal(one["input_ids"], same["input_ids"])
        assert not torch.equal(one["input_ids"], changed["input_ids"])


def test_a_model_is_compressed_with_its_own_text(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    data = generated(model, sequences=16, length=32)
    report = tersor.compress(model, ratio=5, data=data, effort="fast")
    assert report.output_error is not None
    tersor.save(model, tmp_path / "model.tersor")
    loaded = tersor.load(tmp_path / "model.tersor", GPT2LMHeadModel(GPT2Config(**sizes)).eval())
    tokens = data[0]["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lambda: BertModel(BertConfig(**SIZES)), {}, "generates text is needed.*BertModel"),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=96, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
            ),
            {},
            "from other text only",
        ),
        (lambda: torch.nn.Linear(2, 2), {}, "got a Linear"),
        (llama, {"length": 1}, "got 32 of 1"),
        (llama, {"sequences": 0}, "got 0 of 256"),
    ],
)
def test_what_cannot_generate_is_refused(make, options, said):
    with pytest.raises(InputError, match=said):
        generated(make(), **options)
