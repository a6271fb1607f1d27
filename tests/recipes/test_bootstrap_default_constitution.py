"""The fifteen principles that ship, on models that cannot judge: everything runs, and nothing is made up.

The stages before the sixth are left out: none of these models would pass them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer

from scaler_wizard.data.generators import sample_example
from scaler_wizard.data.records import read_records
from scaler_wizard.errors import SpecError
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.bootstrap import LAST, BootstrapRecipe
from scaler_wizard.recipes.bootstrap_constitution import ConstitutionStage
from scaler_wizard.recipes.registry import RECIPES
from scaler_wizard.report.page import write_report
from scaler_wizard.runs.phase import Phase
from scaler_wizard.specs.bootstrap import BootstrapJob
from scaler_wizard.specs.constitution import read_constitution
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace


class OnlyTheConstitution(BootstrapRecipe):
    """P0, one attempt of the sixth stage, the export."""

    def __init__(self, job: BootstrapJob, plan: Plan, run_dir: RunDir) -> None:
        super().__init__(job, plan, run_dir)
        self.stages = (ConstitutionStage(),)

    def phases(self) -> Iterator[Phase]:
        yield Phase("P0", "measure", self.measure_base)
        yield Phase("P6", "one attempt", lambda context: self.run_stage(self.stages[0], 1, context))
        yield Phase(LAST, "export", self.finish_up)


def prompts_file(folder: Path) -> Path:
    """Prompts of one's own: letter tasks as a person would write them down."""
    examples = {}
    for number in range(300):
        kind = ("copy", "reverse")[number % 2]
        example = sample_example(kind, f"prompts/{number}", 1, split="train")
        examples[example.instruction] = example
    rows = [
        {"instruction": one.instruction, "question": one.question, "type": one.task, "answer": one.answer}
        for one in examples.values()
    ]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def longer_model(folder: Path) -> Path:
    """The embedded model, said to read 384 tokens and to end its answers with a full stop or a colon.

    It was never taught to end a turn, and has never seen so many tokens: it answers, and cannot judge.
    """
    shutil.copytree(resolve_model("seedling"), folder)
    change_json(folder / "config.json", max_position_embeddings=384)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = [token for token in range(len(tokenizer)) if tokenizer.decode([token]).strip() in (".", ":")]
    change_json(folder / "generation_config.json", eos_token_id=ends)
    return folder


def change_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **fields}), encoding="utf-8")


def constitution_run(
    harness: ModuleType, folder: Path, model: str | Path, **constitution: Any
) -> tuple[RunDir, int]:  # fmt: skip
    """A run with prompts of a file and, where nothing else is named, the constitution that ships."""
    value = harness.bootstrap_value(
        model={"base_model": str(model)},
        stages={"last": 6},
        constitution={"prompts": 24, "requests": 20, "principles_per_answer": 3, **constitution},
        evaluation={"questions": 20},
    )
    value["world"] = {"source": "file", "file": str(prompts_file(folder))}
    run = harness.create(Workspace.create(folder / "workspace"), value)
    return run, harness.attempt(run)


@pytest.fixture
def only_the_constitution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "bootstrap", OnlyTheConstitution)


@pytest.mark.usefixtures("only_the_constitution")
def test_a_critic_that_cannot_judge_is_uncertain_and_nothing_is_trained(
    harness: ModuleType, tmp_path: Path
) -> None:
    run, code = constitution_run(harness, tmp_path, longer_model(tmp_path / "longer"))
    assert code == 0, run.exit_status()
    result = run.result()
    assert result is not None
    stage = result["stages"][0]
    assert (stage["passed"], stage["steps"]) == (False, 0)
    assert any("made data: kept" in reason for reason in result["stopped"]["reasons"])
    shipped = read_constitution("default")
    critic = stage["data"]["critic"]
    assert set(critic) <= {rule.id for rule in shipped.principles}
    rows = list(read_records(run.path / stage["data"]["file"], stage["data"]["sha256"]))
    judged = [row for row in rows if row["reason"] != "empty"]
    assert len(rows) == 24
    assert judged, stage["data"]
    assert sum(counts["n"] for counts in critic.values()) == 3 * len(judged)
    assert sum(counts["uncertain"] for counts in critic.values()) > 0.8 * 3 * len(judged), critic
    assert all(row["kept"] or row["reason"] for row in rows)
    assert all(row["scores"] for row in judged), "what the critic said in each order stands in the record"
    page = write_report(run.path).read_text(encoding="utf-8")
    assert "0 of 6 stages passed" in page
    assert "orders disagree" in page or "below the margin" in page


@pytest.mark.usefixtures("only_the_constitution")
def test_prompts_that_do_not_fit_the_context_are_said_before_anything_is_measured(
    harness: ModuleType, tmp_path: Path
) -> None:
    run, code = constitution_run(harness, tmp_path, "seedling")
    assert code != 0
    status = run.exit_status()
    assert status is not None
    assert '15 of 15 principles of "fifteen plain principles" need prompts' in status.reason
    assert "this model reads 128" in status.reason
    assert not (run.path / "bootstrap").exists()


def test_a_constitution_that_cannot_be_read_is_refused_before_the_run(
    harness: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("version: 1\nname: mine\nprinciples: []\n", encoding="utf-8")
    with pytest.raises(SpecError, match="principles"):
        constitution_run(harness, tmp_path, "seedling", source=str(tmp_path / "mine.yaml"))
    with pytest.raises(SpecError, match="nowhere"):
        constitution_run(harness, tmp_path, "seedling", source="nowhere.yaml")
