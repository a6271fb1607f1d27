"""Preference training in the loop: first loss ln 2, no second model, exact resume, and the reference trap."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensor

from scaler_wizard.data.pair_batches import PairBatches, TokenPair
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.errors import CheckpointError, ReferenceMismatchError
from scaler_wizard.models.adapters import adapters_off, attach_lora, prepare_full
from scaler_wizard.models.tiny import tiny_model
from scaler_wizard.training.loop import StepResult, TrainSettings, new_state, train
from scaler_wizard.training.preference import (
    PreferenceSettings,
    Reference,
    check_reference,
    check_start,
    pairs_digest,
    preference_objective,
    score_reference,
)
from scaler_wizard.training.state import load_state, save_state

STEPS = 6


def row(seed: int, length: int = 10, prompt: int = 5) -> TokenRow:
    ids = np.random.RandomState(seed).randint(6, 200, length).astype(np.int32)
    return TokenRow(seed, ids, np.arange(length) >= prompt)


def pairs(count: int = 6) -> list[TokenPair]:
    return [TokenPair(row(2 * n), row(2 * n + 1, 8 + n % 4)) for n in range(count)]


def batches(items: Sequence[TokenPair]) -> PairBatches:
    anchors = [row(500 + n) for n in range(5)]
    return PairBatches(
        items, anchors, pairs_per_step=3, anchors_per_pair=1.0, micro_batch_tokens=48, seed=1
    )  # fmt: skip


def lora(**changes: Any) -> Any:
    return attach_lora(tiny_model(), rank=4, alpha=8.0, seed=1, **changes)


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"total_steps": STEPS, "learning_rate": 5e-3, **changes})


def run(model: Any, state: Any = None, until: int = STEPS, **changes: Any) -> list[StepResult]:
    items = pairs()
    preference = PreferenceSettings(**changes)
    reference = score_reference(model, items, micro_batch_tokens=64) if preference.needs_reference else None
    objective = preference_objective(preference, reference)
    return run_steps(model, batches(items), objective, state, until)


def run_steps(model: Any, made: PairBatches, objective: Any, state: Any, until: int) -> list[StepResult]:
    found = []
    for result in train(model, made, objective, settings(), state=state):
        found.append(result)
        if result.step == until:
            break
    return found


def test_the_first_dpo_loss_is_ln_2_and_the_reference_is_the_base_with_the_adapter_off() -> None:
    model, items = lora(), pairs()
    reference = score_reference(model, items, micro_batch_tokens=64)
    first = check_start(model, batches(items).step(0).micro_batches, reference, beta=0.1)
    assert first == pytest.approx(math.log(2), abs=1e-6)
    with adapters_off(model):
        off = score_reference(model, items, micro_batch_tokens=64)
    assert torch.equal(reference.log_probs, off.log_probs)
    alone = PreferenceSettings(sft_weight=0.0, anchor_weight=0.0)
    (result, *_) = run_steps(model, batches(items), preference_objective(alone, reference), None, 1)
    assert result.loss == pytest.approx(math.log(2), abs=1e-5)


def test_training_raises_the_margin_and_keeps_the_anchors() -> None:
    model = lora()
    results = run(model)
    assert results[0].metrics["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert results[-1].metrics["reward_margin"] > 0
    assert results[-1].metrics["anchor_nll"] < results[0].metrics["anchor_nll"]


def test_a_reference_loaded_again_is_not_the_model_in_memory() -> None:
    """The trap: full fine-tuning of a model that was trained before, held to the weights on the disk."""
    model, items = prepare_full(tiny_model()), pairs()
    run(model, method="orpo")  # an earlier stage, in memory only
    on_disk = score_reference(tiny_model(), items, micro_batch_tokens=64)
    made = batches(items).step(0).micro_batches
    with pytest.raises(ReferenceMismatchError, match="ln 2"):
        check_start(model, made, on_disk, beta=0.1)
    in_memory = score_reference(model, items, micro_batch_tokens=64)
    assert check_start(model, made, in_memory, beta=0.1) == pytest.approx(math.log(2), abs=1e-6)


def test_dropout_makes_the_policy_another_model_than_itself() -> None:
    model, items = lora(dropout=0.5), pairs()
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(0))
    reference = score_reference(model, items, micro_batch_tokens=64)
    with pytest.raises(ReferenceMismatchError, match="dropout"):
        check_start(model, batches(items).step(0).micro_batches, reference, beta=0.1)


def test_orpo_needs_no_reference() -> None:
    results = run(lora(), method="orpo")
    assert results[-1].loss < results[0].loss
    assert "log_odds_ratio" in results[-1].metrics


def floats_alive() -> int:
    """Numbers in all tensors there are, each storage once."""
    gc.collect()
    # Not isinstance: it asks every object for its class, and some warn when they are asked.
    found = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    # Those that a compiler left behind have a shape and no numbers.
    alive = [item for item in found if not isinstance(item, FakeTensor)]
    storages = {item.untyped_storage().data_ptr(): item.untyped_storage().nbytes() for item in alive}
    return sum(storages.values()) // 4


def test_there_is_never_a_second_model_in_memory() -> None:
    """Between two steps there are the weights, AdamW's two moments, and little else."""
    before = floats_alive()
    model, items = prepare_full(tiny_model()), pairs()
    size = sum(value.numel() for value in model.parameters())
    reference = score_reference(model, items, micro_batch_tokens=64)
    objective = preference_objective(PreferenceSettings(), reference)
    largest = [
        floats_alive() - before for _ in train(model, batches(items), objective, settings(total_steps=2))
    ]
    assert 3 * size <= max(largest) < 3.5 * size
    assert reference.log_probs.numel() == 2 * len(items)


def test_a_resumed_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    items = pairs()
    whole = lora()
    reference = score_reference(whole, items, micro_batch_tokens=64)
    objective = preference_objective(PreferenceSettings(), reference)
    run_steps(whole, batches(items), objective, None, STEPS)

    half = lora()
    state = new_state(half, settings())
    run_steps(half, batches(items), objective, state, 3)
    save_state(state, tmp_path)
    again = lora()
    resumed = new_state(again, settings())
    load_state(resumed, tmp_path)
    kept = Reference(reference.log_probs.clone(), pairs_digest(items))
    later = preference_objective(PreferenceSettings(), check_reference(kept, items))
    run_steps(again, batches(items), later, resumed, STEPS)
    for (name, value), other in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_a_reference_of_other_pairs_is_refused() -> None:
    reference = score_reference(lora(), pairs(4), micro_batch_tokens=64)
    with pytest.raises(CheckpointError, match="other pairs"):
        check_reference(reference, pairs(5))


def test_the_size_of_a_pass_does_not_change_the_step() -> None:
    losses = []
    for size in (32, 200):
        model, items = lora(), pairs()
        reference = score_reference(model, items, micro_batch_tokens=size)
        objective = preference_objective(PreferenceSettings(), reference)
        made = batches(items).with_micro_batch_tokens(size)
        losses.append([result.loss for result in run_steps(model, made, objective, None, STEPS)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
