"""Tiny random models and a byte-level tokenizer, built in milliseconds: the stand-ins that tests train.

Real architectures of transformers at toy sizes, nothing mocked. Not used by any recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BloomConfig,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TINY_CONTEXT = 32

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": TINY_CONTEXT,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED: dict[str, Any] = {**_SHAPE, "num_key_value_heads": 2, "head_dim": 8}


def _llama(**changes: Any) -> Any:
    return LlamaConfig(**{**_GROUPED, **changes})


def _qwen3(**changes: Any) -> Any:
    return Qwen3Config(**{**_GROUPED, "head_dim": 16, "tie_word_embeddings": True, **changes})


def _phi3(**changes: Any) -> Any:
    shape = {**_SHAPE, "num_key_value_heads": 2, "original_max_position_embeddings": TINY_CONTEXT}
    return Phi3Config(**{**shape, **changes})


def _gemma(**changes: Any) -> Any:
    return GemmaConfig(**{**_GROUPED, **changes})


def _gemma3(**changes: Any) -> Any:
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    return Gemma3TextConfig(**{**_GROUPED, **layers, **changes})


def _mistral(**changes: Any) -> Any:
    return MistralConfig(**{**_GROUPED, "sliding_window": None, **changes})


def _gpt_neox(**changes: Any) -> Any:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    return GPTNeoXConfig(**{**_SHAPE, "rope_parameters": rope, **changes})


def _gpt2(**changes: Any) -> Any:
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": TINY_CONTEXT}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2Config(**{**shape, **tokens, **changes})


def _bloom(**changes: Any) -> Any:
    return BloomConfig(**{"hidden_size": 32, "n_layer": 2, "n_head": 4, **changes})


TINY_CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "phi3": _phi3,
    "gemma": _gemma,
    "gemma3": _gemma3,
    "mistral": _mistral,
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
    "bloom": _bloom,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: six special tokens, then one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",  # noqa: S106 (a token's text, not a secret)
        bos_token="<|bos|>",  # noqa: S106
        eos_token="<|end|>",  # noqa: S106
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
        model_max_length=TINY_CONTEXT,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(
    kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Any:
    """A random causal language model of that architecture (see `TINY_CONFIGS`) in evaluation mode.

    Two layers, hidden size 32, context 32 tokens, a vocabulary for `tiny_tokenizer`; `changes` are
    config fields. Equal seeds give equal weights, and the global random state is left alone.
    """
    vocabulary = {"vocab_size": len(SPECIAL_TOKENS) + 256}
    config = TINY_CONFIGS[kind](**{**vocabulary, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()
