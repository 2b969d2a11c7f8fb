# SPDX-License-Identifier: Apache-2.0
"""Let a language model write the text with which it is calibrated, where there is no other."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from tersor.errors import InputError

_AT_ONCE = 8
"""Sequences of a batch."""


def generated(
    model: PreTrainedModel, *, sequences: int = 32, length: int = 256, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Return batches of tokens that a language model has drawn, for ``data`` of `tersor.compress`.

    Text of the kind that the model is used for is better, but this is much better than no data.

    Parameters
    ----------
    model
        Model with a head that predicts the next token. It is not changed.
    sequences
        Number of sequences; by default 32.
    length
        Tokens of each; by default 256.
    seed
        Seed of the draws; by default 0.

    Returns
    -------
    list of dict
        Arguments of ``forward``, without a cache: ``input_ids`` of shape (up to 8, length).

    Raises
    ------
    InputError
        If the model does not generate text from nothing, or if sequences or length are too few.

    References
    ----------
    Liu et al., 2023: *LLM-QAT: Data-Free Quantization Aware Training for Large Language Models*,
    arXiv 2305.17888.

    Examples
    --------
    >>> import tersor.transformers
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    >>> model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, **sizes))
    >>> data = tersor.transformers.generated(model, sequences=10, length=16)
    >>> [batch["input_ids"].shape for batch in data]
    [torch.Size([8, 16]), torch.Size([2, 16])]
    """
    if not (isinstance(model, GenerationMixin) and model.can_generate()):
        raise InputError(
            f"a model that generates text is needed, such as AutoModelForCausalLM gives, got a "
            f"{type(model).__name__}; give text as data"
        )
    if model.config.is_encoder_decoder:
        raise InputError(
            f"{type(model).__name__} generates text from other text only; give text as data"
        )
    if sequences < 1 or length < 2:
        raise InputError(
            f"at least one sequence of two tokens is needed, got {sequences} of {length}"
        )
    training = model.training
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            counts = [min(_AT_ONCE, sequences - i) for i in range(0, sequences, _AT_ONCE)]
            return [_drawn(model.eval(), count, length) for count in counts]
    finally:
        model.train(training)


def _drawn(model: PreTrainedModel, count: int, length: int) -> dict[str, Tensor]:
    start = model.config.bos_token_id
    vocabulary = model.get_input_embeddings().num_embeddings
    shape = (count, 1)
    # Without a token for the start, any token begins.
    known = start is not None and start < vocabulary
    first = torch.full(shape, start) if known else torch.randint(vocabulary, shape)
    first = first.to(model.device)
    drawing = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=length - 1,  # no sequence ends early
        max_new_tokens=length - 1,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=0,
    )
    tokens = model.generate(first, drawing, attention_mask=torch.ones_like(first))
    return {"input_ids": tokens, "use_cache": False}
