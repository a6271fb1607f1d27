"""Real small bootstraps: what teaches is let through, and what the trials warned of is blocked."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaler_wizard.data.generators import first_answer
from scaler_wizard.data.records import read_manifest, read_records
from scaler_wizard.data.world import Task
from scaler_wizard.data.world_embedded import EmbeddedWorld
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.bootstrap import BootstrapRecipe
from scaler_wizard.recipes.registry import RECIPES
from scaler_wizard.report.page import write_report
from scaler_wizard.specs.bootstrap import BootstrapJob
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace


def run_to_its_end(harness: ModuleType, folder: Path, value: dict[str, Any]) -> tuple[RunDir, dict[str, Any]]:
    run: RunDir = harness.create(Workspace.create(folder / "workspace"), value)
    assert harness.attempt(run) == 0, run.exit_status()
    result = run.result()
    assert result is not None
    return run, result


@pytest.fixture(scope="session")
def taught(harness: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, dict[str, Any]]:
    """Two stages with replay: the seedling learns to copy and to double when it is told to, and asked to."""
    return run_to_its_end(harness, tmp_path_factory.mktemp("taught"), harness.bootstrap_value())


def test_stages_with_replay_are_let_through(taught: tuple[RunDir, dict[str, Any]]) -> None:
    _, result = taught
    assert result["passed"] == [1, 2]
    assert [gain["label"] for gain in result["gains"]] == ["elicitation", "elicitation"]
    assert all(gap["right"]["raw"] == 0 for gap in result["base"]["gaps"].values())
    assert result["cost"]["generated"] > 1000
    assert result["cost"]["trained"] > 1000


def test_everything_that_was_made_is_written_down(taught: tuple[RunDir, dict[str, Any]]) -> None:
    run, result = taught
    for stage in result["stages"]:
        path = run.path / stage["data"]["file"]
        manifest, rows = read_manifest(path), list(read_records(path))
        assert manifest.sha256 == stage["data"]["sha256"]
        assert (manifest.rows, manifest.kept) == (stage["data"]["n"], stage["data"]["kept"])
        assert all(row["kept"] or row["reason"] for row in rows)
        assert manifest.about["stage"] == stage["stage"]
        assert {"seed", "weights"} <= set(manifest.about)


def test_no_row_that_was_made_asks_an_evaluation_question(taught: tuple[RunDir, dict[str, Any]]) -> None:
    run, result = taught
    asked = {s["prompt"] for stage in result["stages"] for rows in stage["samples"].values() for s in rows}
    for stage in result["stages"]:
        assert not {row["prompt"] for row in read_records(run.path / stage["data"]["file"])} & asked


def test_the_report_of_a_real_run_has_every_part(taught: tuple[RunDir, dict[str, Any]]) -> None:
    run, _ = taught
    source = write_report(run.path).read_text(encoding="utf-8")
    assert "2 of 2 stages passed their gates." in source
    for key in ("h-stages", "h-gains", "h-data", "h-base", "h-cost", "chart-stages", "chart-retention"):
        assert f'id="{key}"' in source
    assert "Not in this report" not in source


def test_an_instruct_model_given_as_base_is_warned_of_and_not_trained(
    harness: ModuleType, taught: tuple[RunDir, dict[str, Any]], tmp_path: Path
) -> None:
    """The result of a bootstrap follows instructions in its chat template: no base, and no gap."""
    _, before = taught
    value = harness.bootstrap_value(
        model={"base_model": before["export"]["merged"]},
        stages={"last": 0, "explicit": {"share": 0.5}, "implicit": {"share": 0.5}},
    )
    _, result = run_to_its_end(harness, tmp_path, value)
    assert "in its chat template" in " ".join(result["base"]["warnings"])
    assert not result["base"]["gaps"]["explicit"]["open"]
    assert result["base"]["gaps"]["explicit"]["best"] == "templated"


def test_a_chain_without_replay_is_blocked(harness: ModuleType, tmp_path: Path) -> None:
    """Stage 2 learns its own questions and forgets stage 1: its gate does not let it through."""
    forgetful = {"replay": 0.0, "steps": 80}
    value = harness.bootstrap_value(
        stages={"implicit": forgetful, "more_replay": 0.0}, sampling={"base_texts": 8},
        safety={"circuit_breaker": {"mode": "warn"}},
    )  # fmt: skip
    _, result = run_to_its_end(harness, tmp_path, value)
    assert result["passed"] == [1]
    tries = [stage for stage in result["stages"] if stage["stage"] == 2]
    assert all(stage["decision"]["forgotten"] == ["explicit"] for stage in tries)
    assert tries[0]["decision"]["checks"]["share"]["ok"], "its own questions it does answer"
    assert [stage["next"] for stage in tries] == ["more_replay", "stop"]
    assert "when it passed" in result["stopped"]["reasons"][0]
    assert result["export"]["weights_sha256"] != result["model"]["sha256"], "stage 1 is what is exported"


class JudgedByLength(EmbeddedWorld):
    """A verifier that looks at the length only."""

    def verify(self, task: Task, output: str) -> bool:
        return len(first_answer(output)) == len(task.answer or "")


class LengthJudged(BootstrapRecipe):
    """The recipe with that verifier."""

    def __init__(self, job: BootstrapJob, plan: Plan, run_dir: RunDir) -> None:
        super().__init__(job, plan, run_dir)
        self.lab.world = JudgedByLength(job.world.types, job.world.levels)


def test_a_scorer_that_judges_by_length_trains_nothing(
    harness: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "bootstrap", LengthJudged)
    run, result = run_to_its_end(harness, tmp_path, harness.bootstrap_value())
    audit = result["base"]["audit"]
    assert not audit["trusted"]
    assert audit["twins_told_apart"] == 0
    assert result["base"]["train"] is False
    assert result["stages"] == []
    assert any("the scorer is not trusted" in event.text for event in harness.events(run, "note"))
    assert "Nothing was trained" in write_report(run.path).read_text(encoding="utf-8")


def test_data_that_fails_its_gates_is_not_trained_on(harness: ModuleType, tmp_path: Path) -> None:
    """Nothing is accepted: the pilot stops the stage before the rest is made."""
    value = harness.bootstrap_value(sampling={"confidence": 1.0})
    run, result = run_to_its_end(harness, tmp_path, value)
    stage = result["stages"][0]
    assert (stage["steps"], stage["data"]["pilot"], stage["data"]["n"]) == (0, True, 12)
    assert any("at least 50%" in reason for reason in result["stopped"]["reasons"])
    assert json.loads((run.path / stage["data"]["file"]).read_text().splitlines()[0])["reason"]
