"""The memory model runs without torch, so it states limits again that the engine sets: they must agree."""

from __future__ import annotations

import pytest
import torch

from scaler_wizard.inference.modes import DEFAULT_LIMITS, InferenceLimits, cache_positions
from scaler_wizard.losses.sft import rows_at_a_time
from scaler_wizard.models.tiny import tiny_model
from scaler_wizard.planning import memory
from scaler_wizard.training import blocked_attention, fast_path


def test_evaluation_limits_are_those_of_inference() -> None:
    assert DEFAULT_LIMITS.batch_tokens == memory.EVALUATION_BATCH
    assert DEFAULT_LIMITS.cache_tokens == memory.EVALUATION_CACHE
    assert DEFAULT_LIMITS.cache_bytes == memory.EVALUATION_CACHE_BYTES
    assert DEFAULT_LIMITS.max_rows == memory.EVALUATION_ROWS
    assert DEFAULT_LIMITS.logit_elements == memory.EVALUATION_LOGITS


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_the_cache_is_bounded_in_bytes_too(kind: str) -> None:
    model = tiny_model(kind)
    whole = cache_positions(model, DEFAULT_LIMITS)
    assert whole == DEFAULT_LIMITS.cache_tokens
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    position = 2 * config.num_hidden_layers * heads * width * 4
    assert cache_positions(model, InferenceLimits(cache_bytes=100 * position + 1)) == 100
    assert cache_positions(model, InferenceLimits(cache_bytes=1)) == 1


def test_logit_chunks_are_those_of_the_loss() -> None:
    for vocabulary in (300, 32_000, 256_000):
        for kind in ("cpu", "cuda"):
            expected = rows_at_a_time(vocabulary, torch.device(kind))
            assert memory.logit_rows(vocabulary, 1 << 20, kind) == expected  # type: ignore[arg-type]


def test_attention_blocks_are_those_of_training() -> None:
    assert memory.SCORE_BLOCK == blocked_attention.MOST_SCORES
    assert memory.BLOCK_QUERIES == blocked_attention.BLOCK_QUERIES


def test_fused_model_types_are_those_of_the_fast_path() -> None:
    """Llama's MLP is LlamaMLP, Qwen3-VL's Qwen3VLTextMLP; Gemma 3's inner part shares its outer one's."""
    families = {name.replace("_", "") for name in memory.FUSED - {"gemma3_text"}}
    assert {f"{name}mlp" for name in families} == {name.lower() for name in fast_path.MLPS}
