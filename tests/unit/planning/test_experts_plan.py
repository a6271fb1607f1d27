"""What an experts job may say, and how it is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.errors import SpecError
from scaler_wizard.jobs.prepare import load_job, parse_job
from scaler_wizard.planning.experts import STAGES, make_experts_plan, phase_of_stage, trainings_of
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.hardware import FAKES
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.safety.contract import job_hash
from scaler_wizard.specs.experts import ExpertsJob, RoutingSection

ROOT = Path(__file__).resolve().parents[3]


def job(**changes: Any) -> ExpertsJob:
    experts = [{"label": "a", "generator": "sort"}, {"label": "b", "generator": "reverse"}]
    value = {"recipe": "experts", "model": {"base_model": "seedling"}, "experts": experts, **changes}
    parsed = parse_job(value, ROOT)
    assert isinstance(parsed, ExpertsJob)
    return parsed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"experts": [{"label": "a", "generator": "sort"}] * 2}, "the label a is given twice"),
        ({"experts": [{"label": "a", "generator": "sort"}]}, "experts"),
        ({"experts": [{"label": "base", "generator": "sort"}, {"label": "b"}]}, "reserved"),
        ({"experts": [{"label": "a"}, {"label": "b"}]}, "no adapter, no data and no generator"),
        ({"experts": [{"label": "../a", "generator": "sort"}, {"label": "b"}]}, "experts.0.label"),
        ({"dataset": {"train": 0.5}}, "must sum to 1"),
        ({"dataset": {"test_row": 5}}, "test_row"),
        ({"router": {"ladder": []}}, "router.ladder"),
        ({"router": {"ladder": ["prob"]}}, "probe"),
    ],
)
def test_what_a_job_may_not_say(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        job(**changes)


def test_a_dataset_file_takes_the_place_of_its_path(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("test_rows: 7\nexperts: {a: 40, b: 0}\n", encoding="utf-8")
    value = {
        "recipe": "experts", "model": {"base_model": "seedling"}, "dataset": "dataset.yaml",
        "experts": [{"label": "a", "data": "rows.jsonl"}, {"label": "b", "adapter": "lora"}],
    }  # fmt: skip
    parsed = parse_job(value, tmp_path)
    assert isinstance(parsed, ExpertsJob)
    assert parsed.dataset == RoutingSection(test_rows=7, experts={"a": 40, "b": 0})
    assert parsed.experts[0].data == str(tmp_path / "rows.jsonl")
    assert parsed.experts[1].adapter == str(tmp_path / "lora")
    assert parsed.labels == ("a",)
    (tmp_path / "dataset.yaml").write_text("tests: 7\n", encoding="utf-8")
    with pytest.raises(SpecError, match='unknown key "tests"'):
        parse_job(value, tmp_path)


def test_a_signature_covers_a_trial_and_nothing_else() -> None:
    signed = job_hash(job())
    assert job_hash(job(pace="fast")) == signed
    assert job_hash(job(training={"max_steps": 7})) != signed


def test_a_trial_does_less() -> None:
    fast = job(pace="fast")
    assert [fast.steps_of(expert) for expert in fast.experts] == [20, 20]
    small = job(pace="test").routing
    assert (small.rows, small.test_rows) == (64, 24)
    assert job(pace="fast").routing == job().routing


def test_the_shipped_job_has_one_phase_a_stage() -> None:
    shipped = load_job(ROOT / "configs" / "experts.yaml")
    assert isinstance(shipped, ExpertsJob)
    facts = read_facts(resolve_model(shipped.model.base_model))
    plan = make_experts_plan(shipped, FAKES["rtx_3090"], facts)
    assert [phase.name for phase in plan.phases] == [phase_of_stage(stage) for stage in STAGES]
    steps = shipped.training.max_steps
    assert trainings_of(shipped) == (*[steps] * (4 + 4), 4 * steps)
    assert plan.phase("P1").steps == 12 * steps
    assert not [note for note in plan.notes if "promoted" in note]
    with pytest.raises(SpecError, match='no stage "evaluate"'):
        phase_of_stage("evaluate")


def test_a_plan_says_when_nothing_can_be_promoted() -> None:
    facts = read_facts(resolve_model("seedling"))
    few = job(dataset={"test_rows": 50, "rows": 20}, evaluation={"seeds": 2})
    notes = make_experts_plan(few, FAKES["rtx_3090"], facts).notes
    assert len([note for note in notes if "nothing will be promoted" in note]) == 2
    with pytest.raises(SpecError, match="1 experts are routed to"):
        make_experts_plan(job(dataset={"experts": {"b": 0}}), FAKES["rtx_3090"], facts)
