"""Tiny models of transformers with random weights, one for each way in which models treat their logits."""

from __future__ import annotations

from typing import Any

import torch

V = 97
_SMALL = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_BART = {
    "vocab_size": V, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "dropout": 0.0, "pad_token_id": 0,
    "decoder_start_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": 1,
}  # fmt: skip
_T5 = {
    "vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}  # fmt: skip
_EXPERTS = {"num_key_value_heads": 1, "num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.1}
_GPT2 = {
    "vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_BERT = {**_SMALL, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_GEMMA = {**_SMALL, "num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 0.2}
_DECODER = ("BartForCausalLM", "BartConfig", _BART)
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _SMALL),
    "llama, tied": ("LlamaForCausalLM", "LlamaConfig", {**_SMALL, "tie_word_embeddings": True}),
    "gpt2, tied": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "phi, bias": ("PhiForCausalLM", "PhiConfig", {**_SMALL, "resid_pdrop": 0.0}),
    "gemma2, softcap": ("Gemma2ForCausalLM", "Gemma2Config", _GEMMA),
    "cohere, scale": ("CohereForCausalLM", "CohereConfig", {**_SMALL, "logit_scale": 3.0}),
    "granite, quotient": ("GraniteForCausalLM", "GraniteConfig", {**_SMALL, "logits_scaling": 3.0}),
    "mixtral, experts": ("MixtralForCausalLM", "MixtralConfig", {**_SMALL, **_EXPERTS}),
    "t5, tied": ("T5ForConditionalGeneration", "T5Config", _T5),
    "t5": ("T5ForConditionalGeneration", "T5Config", {**_T5, "tie_word_embeddings": False}),
    "marian, bias": ("MarianMTModel", "MarianConfig", _BART),
    "bert, masked": ("BertForMaskedLM", "BertConfig", _BERT),
}


def make(kind: str = "llama", seed: int = 0, **more: Any) -> Any:
    """Return a model, always the same."""
    import transformers

    model, config, options = _DECODER if kind == "bart, a decoder" else KINDS[kind]
    torch.manual_seed(seed)
    made = getattr(transformers, model)(getattr(transformers, config)(**{**options, **more}))
    if kind == "marian, bias":
        made.final_logits_bias.normal_()
    if kind == "phi, bias":
        torch.nn.init.normal_(made.lm_head.bias)
    return made.train()


def examples(count: int = 8, length: int = 9) -> list[dict[str, torch.Tensor]]:
    """Return sequences with their labels, of which some are ignored, in some examples many."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number in range(count):
        tokens = torch.randint(2, V, (length,), generator=generator)
        labels = tokens.clone()
        labels[: (0, 3, 7, 1)[number % 4]] = -100
        rows.append({"input_ids": tokens, "labels": labels})
    return rows


def batch(count: int = 3) -> dict[str, torch.Tensor]:
    """Return the first examples as a batch."""
    rows = examples(count)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
