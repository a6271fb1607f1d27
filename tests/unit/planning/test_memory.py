from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler_wizard.planning.facts import LinearShape, ModelFacts
from scaler_wizard.planning.fit import fits, what_would_fit
from scaler_wizard.planning.hardware import FAKES, Hardware
from scaler_wizard.planning.memory import (
    MemoryEstimate,
    MemorySettings,
    adapter_bytes,
    calibrate,
    estimate_for,
    estimate_memory,
)

USUAL: dict[str, Any] = {
    "strategy": "lora", "rank": 16, "target_modules": None, "precision": "bfloat16",
    "micro_batch_tokens": 2048,
    "context": 2048, "activation_checkpointing": False, "device_kind": "cuda",
}  # fmt: skip


def estimate(facts: ModelFacts, **changes: Any) -> MemoryEstimate:
    return estimate_memory(facts, **(USUAL | changes))


def test_rank_32_to_64_on_q_and_v_of_llama_3b_adds_146_8_mb(llama_3b: ModelFacts) -> None:
    shapes = llama_3b.shapes_of(["q_proj", "v_proj"])
    added = adapter_bytes(64, shapes) - adapter_bytes(32, shapes)
    assert added == 32 * 28 * ((3072 + 3072) + (3072 + 1024)) * 16
    assert round(added / 1e6, 1) == 146.8


@given(st.integers(1, 512), st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 64))
def test_adapter_bytes_is_linear_in_rank(rank: int, inputs: int, outputs: int, count: int) -> None:
    shapes = (LinearShape("x", inputs, outputs, count),)
    assert adapter_bytes(rank, shapes) == rank * adapter_bytes(1, shapes)


def test_total_is_the_larger_of_training_and_evaluation(llama_1b: ModelFacts) -> None:
    found = estimate(llama_1b)
    parts = {
        when: sum(line.bytes for line in found.lines if line.when == when)
        for when in ("always", "training", "evaluation")
    }
    assert found.total == parts["always"] + max(parts["training"], parts["evaluation"])
    assert found.low < found.total < found.high
    assert all(line.explanation for line in found.lines)


def test_known_lines(llama_1b: ModelFacts) -> None:
    assert estimate(llama_1b).line("weights").bytes == 2 * llama_1b.parameters
    assert estimate(llama_1b, strategy="full").line("optimizer").bytes == 8 * llama_1b.parameters
    assert estimate(llama_1b).line("kv cache").bytes == 2 * 22 * 256 * 2 * (2**29 // (2 * 22 * 256 * 2))
    assert estimate(llama_1b).line("logits").bytes == 1024 * 32000 * (4 + 2 + 2)
    assert estimate(llama_1b).line("second copy").bytes == estimate(llama_1b).line("weights").bytes
    four_bit = estimate(llama_1b, strategy="qlora").line("weights").bytes
    assert 0.5 < (four_bit - 2 * 2 * 32000 * 2048) / llama_1b.linear_parameters < 0.53


def test_logits_do_not_grow_with_vocabulary_times_sequence(llama_1b: ModelFacts) -> None:
    """On a CPU at most 4 million numbers (or 32 rows) at a time, as `losses.sft` takes them."""
    here = estimate(llama_1b, device_kind="cpu", micro_batch_tokens=4096).line("logits").bytes
    for vocabulary, tokens in ((32_000, 65_536), (128_000, 4096)):
        facts = dataclasses.replace(llama_1b, vocab_size=vocabulary)
        there = estimate(facts, device_kind="cpu", micro_batch_tokens=tokens).line("logits").bytes
        assert there < 1.05 * here


def test_layers_that_are_not_fused_keep_more(llama_1b: ModelFacts) -> None:
    """Dropout, a part of the layers, or a model type without fused layers."""
    fused = estimate(llama_1b).line("activations").bytes
    for changed in (
        estimate(llama_1b, dropout=0.05),
        estimate(llama_1b, target_modules=["q_proj", "v_proj"]),
        estimate(dataclasses.replace(llama_1b, model_type="phi3")),
    ):
        assert changed.line("activations").bytes > 1.1 * fused


@given(
    st.sampled_from(["lora", "qlora", "full", "prefix_tuning"]),
    st.integers(1, 256),
    st.sampled_from([64, 1024, 8192]),
    st.booleans(),
    st.sampled_from(["cpu", "cuda"]),
)
@settings(deadline=None, max_examples=60)
def test_monotone(
    llama_1b: ModelFacts, strategy: str, rank: int, tokens: int, checkpointing: bool, device: str
) -> None:
    chosen = {"strategy": strategy, "rank": rank, "micro_batch_tokens": tokens, "device_kind": device,
              "activation_checkpointing": checkpointing}  # fmt: skip
    here = estimate(llama_1b, **chosen).total
    assert estimate(llama_1b, **(chosen | {"rank": rank + 1})).total >= here
    assert estimate(llama_1b, **(chosen | {"micro_batch_tokens": tokens * 2})).total >= here
    assert estimate(llama_1b, **(chosen | {"precision": "float32"})).total > here
    assert estimate(llama_1b, **(chosen | {"activation_checkpointing": True})).total <= here


@given(st.integers(100_000_000, 200_000_000_000))
@settings(deadline=None)
def test_calibration_ends_at_the_measured_peak(llama_1b: ModelFacts, measured: int) -> None:
    found = calibrate(estimate(llama_1b), measured)
    parts = {
        when: sum(line.bytes for line in found.lines if line.when == when)
        for when in ("always", "training", "evaluation")
    }
    assert found.total == measured
    peak = parts["always"] + max(parts["training"], parts["evaluation"])
    assert peak == pytest.approx(measured, rel=1e-6)
    assert all(line.bytes >= 0 for line in found.lines)
    assert found.high - found.low <= 0.07 * measured


def test_calibration_leaves_exact_lines_nearly_alone(llama_1b: ModelFacts) -> None:
    before = estimate(llama_1b, micro_batch_tokens=8192)
    after = calibrate(before, round(before.total * 1.1))
    weights = after.line("weights").bytes / before.line("weights").bytes
    activations = after.line("activations").bytes / before.line("activations").bytes
    assert 1 <= weights < 1.05 < activations


BIG = MemorySettings("lora", 64, None, "bfloat16", 16384, 4096, False, "cuda")


def test_what_would_fit_shrinks_in_the_stated_order(llama_3b: ModelFacts) -> None:
    found = what_would_fit(llama_3b, BIG, FAKES["laptop_8gb_gpu"], min_micro_batch=4096)
    assert found.fit.ok
    assert found.settings.micro_batch_tokens == 4096
    assert found.settings.activation_checkpointing
    assert found.settings.strategy == "qlora"
    assert found.settings.context == 4096
    words = " ".join(found.steps)
    assert words.index("micro-batches") < words.index("checkpointing") < words.index("qlora")
    assert found.text.startswith(
        "with micro-batches of 4,096 tokens, activation checkpointing, strategy qlora"
    )


def test_what_fits_already_is_left_alone(llama_1b: ModelFacts) -> None:
    found = what_would_fit(llama_1b, BIG, FAKES["a100_80gb"])
    assert found.settings == BIG
    assert found.text.startswith("as asked")


@pytest.mark.parametrize("name", sorted(FAKES))
@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_a_proposal_that_says_it_fits_does(llama_3b: ModelFacts, name: str, strategy: str) -> None:
    hardware: Hardware = FAKES[name]
    kind = "cuda" if hardware.gpus else "cpu"
    start = MemorySettings(strategy, 64, None, "bfloat16", 16384, 4096, False, kind)
    found = what_would_fit(llama_3b, start, hardware)
    again = fits(estimate_for(llama_3b, found.settings), hardware)
    assert again.ok == found.fit.ok
    assert again.need == found.estimate.total
    assert found.fit.ok != found.text.startswith("nothing")
    if not hardware.gpus:
        assert found.settings.strategy == "lora"
