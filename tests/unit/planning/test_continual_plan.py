"""The plan of one file."""

from __future__ import annotations

from typing import Any

import pytest

from scaler_wizard.errors import SpecError
from scaler_wizard.planning.continual import make_continual_plan
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.hardware import FAKES
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.phases import DataSummary
from scaler_wizard.planning.plan import Plan
from scaler_wizard.specs.continual import ContinualConfig, ContinualJob, FileSection

FACTS = read_facts(resolve_model("seedling"))
MACHINE = next(iter(FAKES.values()))
DATA = DataSummary(rows=900, tokens_estimate=30_000, longest=40, format="messages")


def job(**sections: Any) -> ContinualJob:
    config = ContinualConfig.parse({"model": {"base_model": "seedling", "runtime": "cpu"}, **sections})
    return config.job("a", FileSection(path="/a.jsonl", name="a.jsonl", sha256="0" * 64))


def test_three_phases_without_a_gate() -> None:
    plan = make_continual_plan(job(), MACHINE, FACTS, data=DATA)
    assert [phase.name for phase in plan.phases] == ["P0", "P1", "P2"]
    assert {phase.gate for phase in plan.phases} == {"none"}
    assert plan.recipe == "continual"
    assert plan.target_context == plan.base_context == FACTS.base_context
    assert all(phase.memory.total > 0 and phase.seconds > 0 and phase.disk_bytes > 0 for phase in plan.phases)
    assert Plan.from_dict(plan.as_dict()) == plan


def test_steps_are_one_pass_and_replay_comes_on_top() -> None:
    sections = {"training": {"batch_tokens": 1000}, "replay": {"fraction": 0.25}}
    assert make_continual_plan(job(**sections), MACHINE, FACTS, data=DATA).phase("P1").steps == 40
    sections["replay"] = {"fraction": 0.0}
    assert make_continual_plan(job(**sections), MACHINE, FACTS, data=DATA).phase("P1").steps == 30
    sections["training"] = {"batch_tokens": 1000, "max_steps": 7}
    assert make_continual_plan(job(**sections), MACHINE, FACTS, data=DATA).phase("P1").steps == 7


def test_no_file_decides_the_adapter_of_its_lineage() -> None:
    small = DataSummary(rows=1, tokens_estimate=20, longest=20, format="messages")
    large = DataSummary(rows=10**6, tokens_estimate=10**9, longest=128, format="messages")
    plans = [make_continual_plan(job(), MACHINE, FACTS, data=data) for data in (small, large)]
    assert plans[0].lora == plans[1].lora


def test_full_writes_whole_models() -> None:
    lora, full = (
        make_continual_plan(job(lineage={"strategy": strategy}), MACHINE, FACTS, data=DATA)
        for strategy in ("lora", "full")
    )
    assert full.strategy == "full"
    assert full.disk_bytes > FACTS.weight_bytes + lora.disk_bytes


def test_rows_longer_than_the_context_are_refused() -> None:
    with pytest.raises(SpecError, match=r"lineage\.max_length"):
        make_continual_plan(job(lineage={"max_length": 4096}), MACHINE, FACTS, data=DATA)
    shorter = make_continual_plan(job(lineage={"max_length": 64}), MACHINE, FACTS, data=DATA)
    assert shorter.phase("P1").context == 64
