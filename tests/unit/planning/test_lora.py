from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler_wizard.planning import calculate_optimal_lora_rank
from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.hardware import FAKES, GIB, Gpu, Hardware
from scaler_wizard.planning.lora import Targets, suggest_lora_config


def machine(gib: float, *, gpu: bool) -> Hardware:
    size = int(gib * GIB)
    base = FAKES["rtx_3090"] if gpu else FAKES["two_cores"]
    if gpu:
        return dataclasses.replace(base, gpus=(Gpu("Test", size, int(size * 0.95), (8, 6)),))
    return dataclasses.replace(base, ram_total=size, ram_available=int(size * 0.9))


memory = st.floats(4, 200)
capacity = st.floats(0.1, 8)
contexts = st.sampled_from([None, 2048, 4096, 8192, 32768])
data = st.none() | st.integers(1000, 10**9)


@given(memory, memory, capacity, contexts, data, st.booleans())
@settings(deadline=None, max_examples=60)
def test_rank_never_shrinks_when_memory_grows(
    llama_1b: ModelFacts,
    one: float,
    two: float,
    ratio: float,
    context: int | None,
    tokens: int | None,
    gpu: bool,
) -> None:
    targets = Targets(context=context, capacity=ratio, data_tokens=tokens)
    small, large = sorted((one, two))
    assert (
        suggest_lora_config(machine(small, gpu=gpu), targets, llama_1b).rank
        <= suggest_lora_config(machine(large, gpu=gpu), targets, llama_1b).rank
    )


@given(memory, capacity, capacity, contexts)
@settings(deadline=None, max_examples=60)
def test_rank_grows_with_capacity(
    llama_1b: ModelFacts, gib: float, one: float, two: float, context: int | None
) -> None:
    small, large = sorted((one, two))
    hardware = machine(gib, gpu=True)
    low = suggest_lora_config(hardware, Targets(context=context, capacity=small), llama_1b)
    high = suggest_lora_config(hardware, Targets(context=context, capacity=large), llama_1b)
    assert low.rank <= high.rank


def test_capacity_and_context_really_move_the_rank(llama_1b: ModelFacts) -> None:
    big = FAKES["a100_80gb"]
    plain = suggest_lora_config(big, Targets(), llama_1b).rank
    assert suggest_lora_config(big, Targets(capacity=2), llama_1b).rank > plain
    assert suggest_lora_config(big, Targets(context=16384), llama_1b).rank < plain


@given(memory, capacity, st.integers(0, 5), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_context_pressure_lowers_rank(
    llama_1b: ModelFacts, gib: float, ratio: float, one: int, two: int
) -> None:
    few, many = sorted((one, two))
    hardware = machine(gib, gpu=True)
    low = suggest_lora_config(hardware, Targets(context=2048 << many, capacity=ratio), llama_1b)
    high = suggest_lora_config(hardware, Targets(context=2048 << few, capacity=ratio), llama_1b)
    assert low.rank <= high.rank


@given(memory, capacity, contexts, data, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_alpha_bits_and_reasons(
    llama_3b: ModelFacts,
    gib: float,
    ratio: float,
    context: int | None,
    tokens: int | None,
    low: bool,
    gpu: bool,
) -> None:
    found = suggest_lora_config(
        machine(gib, gpu=gpu), Targets(max(context or 0, 8192), ratio, low, tokens), llama_3b
    )  # fmt: skip
    assert 2 <= found.alpha / found.rank <= 4
    assert found.rank >= 4
    text = "\n".join(found.reasons)
    for word in (
        f"rank {found.rank}:",
        "alpha",
        "dropout",
        "QLoRA",
        "micro-batch",
        "checkpointing",
        found.precision,
    ):
        assert word in text
    if not gpu:
        assert not found.use_qlora
        assert "need a GPU" in text
    elif low:
        assert found.use_qlora
    elif gib >= 20:
        assert not found.use_qlora


def test_qlora_below_20_gb_only_where_16_bit_weights_leave_no_room(
    llama_3b: ModelFacts, llama_1b: ModelFacts
) -> None:
    laptop = FAKES["laptop_8gb_gpu"]
    assert suggest_lora_config(laptop, Targets(), llama_3b).use_qlora
    assert not suggest_lora_config(laptop, Targets(), llama_1b).use_qlora


@pytest.mark.parametrize(
    ("size", "target", "memory_gb", "rank"),
    [
        (7000, 7000, 16, 32),
        (1100, 1100, 16, 11),
        (100, 200, 16, 12),
        (7000, 7000, 8, 16),
        (3000, 1500, 64, 15),
    ],
)
def test_old_formula(size: float, target: float, memory_gb: float, rank: int) -> None:
    assert calculate_optimal_lora_rank(size, target, {"available_memory_gb": memory_gb}) == rank
