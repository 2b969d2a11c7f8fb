# SPDX-License-Identifier: Apache-2.0
"""Families that read and write text."""

from __future__ import annotations

from typing import Any

import torch
from family import Family, tokens
from hugging_face import ENCODER, SPECIAL, transformers

DECODER = {**ENCODER, **SPECIAL, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}
MANY_EXPERTS = {**DECODER, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    **DECODER,
    **{"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "v_head_dim": 8},
    **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "moe_intermediate_size": 24},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "first_k_dense_replace": 1,
}
"""Attention through few numbers per token, and one layer of experts."""

DISTILLED = {"vocab_size": 80, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
GPT2 = {**SPECIAL, "vocab_size": 80, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
BLOOM = {"vocab_size": 80, "hidden_size": 32, "n_layer": 2, "n_head": 4}
FALCON = {"vocab_size": 80, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
XLNET = {"vocab_size": 80, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
MAMBA = {"vocab_size": 80, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}
MAMBA2 = {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}
RWKV = {**ENCODER, "attention_hidden_size": 32, "context_length": 64}
T5 = {
    **{"vocab_size": 80, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    **{"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
}
BART = {
    **SPECIAL,
    **{"vocab_size": 80, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48},
    **{"decoder_ffn_dim": 48, "max_position_embeddings": 64, "decoder_start_token_id": 0},
}


def text() -> dict[str, Any]:
    return {"input_ids": tokens(2, 12)}


def translation() -> dict[str, Any]:
    return {"input_ids": tokens(2, 12), "decoder_input_ids": tokens(2, 7)}


def encoder(kind: str, **more: Any) -> Family:
    """A class whose configuration is called as it is, of transformers that read."""
    return transformers(kind, _configuration(kind), text, ENCODER, **more)


def decoder(kind: str, sizes: dict[str, Any] = DECODER, **more: Any) -> Family:
    """The same of one that writes."""
    return transformers(kind, _configuration(kind), text, sizes, **more)


def _configuration(kind: str) -> str:
    return kind.partition("For")[0].removesuffix("Model").removesuffix("LMHead") + "Config"


LANGUAGE: dict[str, Family] = {
    "BERT": encoder("BertForMaskedLM"),
    "RoBERTa": encoder("RobertaForSequenceClassification"),
    "DistilBERT": decoder("DistilBertModel", DISTILLED),
    "ALBERT (shared layers)": encoder("AlbertForMaskedLM", embedding_size=16),
    "ELECTRA": encoder("ElectraModel", embedding_size=16),
    "DeBERTa-v2": encoder("DebertaV2Model", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "ModernBERT": decoder("ModernBertForMaskedLM", cls_token_id=1, sep_token_id=2),
    "XLNet": decoder("XLNetModel", XLNET),
    "GPT-2 (Conv1D)": decoder("GPT2LMHeadModel", GPT2),
    "GPT-NeoX": encoder("GPTNeoXForCausalLM"),
    "OPT": decoder("OPTForCausalLM", ffn_dim=48, word_embed_proj_dim=32),
    "BLOOM": decoder("BloomForCausalLM", BLOOM),
    "Falcon": decoder("FalconForCausalLM", FALCON),
    "Llama": decoder("LlamaForCausalLM"),
    "Llama, bfloat16": decoder("LlamaForCausalLM", dtype=torch.bfloat16),
    "Mistral": decoder("MistralForCausalLM"),
    "Qwen2 (tied)": decoder("Qwen2ForCausalLM", tie_word_embeddings=True),
    "Qwen3": decoder("Qwen3ForCausalLM"),
    "Gemma 2": decoder("Gemma2ForCausalLM"),
    "Gemma 3": transformers("Gemma3ForCausalLM", "Gemma3TextConfig", text, DECODER),
    "Phi-3": decoder("Phi3ForCausalLM"),
    "Mixtral (experts)": decoder("MixtralForCausalLM", EXPERTS),
    "Qwen3-MoE (experts)": decoder("Qwen3MoeForCausalLM", MANY_EXPERTS),
    "GPT-OSS (experts)": decoder("GptOssForCausalLM", EXPERTS),
    "DeepSeek-V3 (experts)": decoder("DeepseekV3ForCausalLM", LATENT),
    "Mamba": decoder("MambaForCausalLM", MAMBA),
    "Mamba 2": decoder("Mamba2ForCausalLM", MAMBA2),
    "RWKV": decoder("RwkvForCausalLM", RWKV),
    "T5": transformers("T5ForConditionalGeneration", "T5Config", translation, T5),
    "BART": transformers("BartForConditionalGeneration", "BartConfig", translation, BART),
    "Marian": transformers("MarianMTModel", "MarianConfig", translation, BART),
}
"""By name."""
