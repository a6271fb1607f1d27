"""Sizes corrected by a measured step, and learned ones found again: pure, on the embedded model's facts."""

from __future__ import annotations

import dataclasses

import pytest

from scaler_wizard.planning.facts import ModelFacts, read_facts
from scaler_wizard.planning.hardware import FAKES, GIB
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.memory import MemorySettings, estimate_for
from scaler_wizard.planning.micro_batch import corrected_size, learned_cap, learned_key, machine_key
from scaler_wizard.store.learned_sizes import LearnedSize

SETTINGS = MemorySettings("lora", 8, None, "float32", 2048, 128, False, "cpu")


@pytest.fixture(scope="module")
def facts() -> ModelFacts:
    return read_facts(resolve_model("seedling"))


def part(facts: ModelFacts, tokens: int, when: str) -> int:
    lines = estimate_for(facts, dataclasses.replace(SETTINGS, micro_batch_tokens=tokens)).lines
    return sum(line.bytes for line in lines if line.when == when)


def correct(facts: ModelFacts, factor: float, limit: float, most: int = 16384, ran: int = 2048) -> int:
    """The size after a step whose growing part took `factor` of the prediction; limit in those bytes."""
    fixed, growing = part(facts, ran, "always"), part(facts, ran, "training")
    return corrected_size(
        facts, SETTINGS, ran=ran, measured=fixed + round(factor * growing),
        limit=fixed + round(limit * part(facts, 2048, "training")), least=128, most=most,
    )  # fmt: skip


def test_a_step_as_predicted_leaves_the_size(facts: ModelFacts) -> None:
    assert correct(facts, 1.0, 1.2) == 2048


def test_a_step_that_took_more_brings_the_size_down_until_it_fits(facts: ModelFacts) -> None:
    assert correct(facts, 1.0, 0.9) == 1024
    assert correct(facts, 3.0, 1.2) == 512
    assert correct(facts, 1.0, 0.0) == 128, "at least the longest row, whatever was measured"


def test_a_step_that_took_less_lets_it_grow_but_not_beyond_what_gains(facts: ModelFacts) -> None:
    assert correct(facts, 0.6, 1.4) == 4096
    assert correct(facts, 0.6, 100.0, most=5000) == 5000
    assert correct(facts, 1.0, 100.0, most=2048) == 2048


def test_a_measurement_is_believed_within_bounds(facts: ModelFacts) -> None:
    assert correct(facts, 1000.0, 5.0) == correct(facts, 4.0, 5.0)
    assert correct(facts, 0.0, 1.2) == correct(facts, 0.5, 1.2)


def test_a_short_first_step_is_scaled_up(facts: ModelFacts) -> None:
    assert correct(facts, 1.0, 1.2, ran=512) == 2048
    assert correct(facts, 2.0, 1.2, ran=512) == 1024


def test_a_machine_is_the_same_with_less_memory_free_and_another_with_more_in_it() -> None:
    machine = next(iter(FAKES.values()))
    busy = dataclasses.replace(machine, ram_available=GIB, disk_free=5)
    larger = dataclasses.replace(machine, ram_total=machine.ram_total * 2)
    assert machine_key(busy) == machine_key(machine) != machine_key(larger)


def test_a_key_is_of_everything_but_the_size() -> None:
    key = learned_key("m", "h", SETTINGS)
    assert learned_key("m", "h", dataclasses.replace(SETTINGS, micro_batch_tokens=7)) == key
    others = [
        learned_key("n", "h", SETTINGS), learned_key("m", "i", SETTINGS),
        learned_key("m", "h", dataclasses.replace(SETTINGS, rank=16)),
        learned_key("m", "h", dataclasses.replace(SETTINGS, activation_checkpointing=True)),
        learned_key("m", "h", dataclasses.replace(SETTINGS, context=256)),
        learned_key("m", "h", dataclasses.replace(SETTINGS, target_modules=("q_proj",))),
    ]  # fmt: skip
    assert key not in others
    assert len(set(others)) == len(others)


def test_the_newest_size_counts_until_there_is_much_more_memory() -> None:
    old, new = (LearnedSize("k", tokens, 8 * GIB, "out_of_memory", tokens) for tokens in (512, 1024))
    other = LearnedSize("l", 64, 8 * GIB, "killed", 9999.0)
    assert learned_cap("k", [new, old, other], 8 * GIB) == new
    assert learned_cap("k", [new, old], 10 * GIB) == new
    assert learned_cap("k", [new, old], 11 * GIB) is None
    assert learned_cap("x", [new, old], GIB) is None
