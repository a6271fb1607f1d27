"""The experts recipe on the embedded model: every stage, published as held, stopped and gone on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from scaler_wizard.cli.experts import app
from scaler_wizard.cli.experts_options import find_bundle
from scaler_wizard.errors import CheckpointError
from scaler_wizard.jobs.client import Client
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.experts import ExpertsRecipe
from scaler_wizard.report.page import write_report
from scaler_wizard.specs.job import parse_job
from scaler_wizard.store.experts_bundle import read_bundle
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace


def experts_value(**changes: Any) -> dict[str, Any]:
    """A job of seconds: two experts, three steps each, one kind of router twice."""
    return {
        "recipe": "experts", "name": "tiny", "model": {"base_model": "seedling", "runtime": "cpu"},
        "experts": [
            {"label": "crew", "generator": "crew"},
            {"label": "sorting", "generator": "sort", "mode": "lora"},
        ],
        "dataset": {"rows": 20, "test_rows": 8},
        "lora": {"rank": 4, "alpha": 8},
        "training": {"max_steps": 3, "rows": 40, "batch_tokens": 256, "micro_batch_tokens": 256},
        "router": {"ladder": ["probe"]},
        "evaluation": {"rows": 8, "answers": 8, "seeds": 2, "max_new_tokens": 4},
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def completed(harness: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    workspace = Workspace.create(tmp_path_factory.mktemp("experts") / "workspace")
    run = harness.create(workspace, experts_value())
    with harness.hosted(workspace) as host:
        harness.start(host, run)
        assert harness.finish(host, run)["status"] == "completed", run.worker_log.read_text("utf-8")
    assert isinstance(run, RunDir)
    return run


def test_every_stage_leaves_what_the_next_one_reads(completed: RunDir) -> None:
    result = completed.result() or {}
    experts = result["experts"]
    assert experts["labels"] == ["crew", "sorting"]
    assert set(experts["adapters"]) == {"experts/crew", "experts/sorting", "twins/crew", "multitask"}
    assert experts["adapters"]["multitask"]["steps"] == 6
    assert [entry["step"] for entry in experts["ladder"]] == ["probe"]
    assert experts["routing"]["accuracy"]["n"] == 16
    assert len(experts["routing"]["seeds"]["values"]) == 2
    assert set(experts["end_to_end"]["settings"]) == {"routed", "oracle", "multitask", "base", "majority"}


def test_work_is_counted(completed: RunDir) -> None:
    experts = (completed.result() or {})["experts"]
    routed = experts["work"]["routed"]
    assert routed["prefills"] == 1.0
    assert routed["router_decode_steps"] == 0.0
    assert routed["router_forwards"] == 0.0
    assert experts["work"]["base"]["expert_tokens"] == 0.0


def test_what_is_not_worth_it_is_published_as_held(completed: RunDir) -> None:
    workspace = Workspace(completed.path.parent.parent)
    with Client(workspace) as client:
        rows = client.call("versions", lineage="experts")["versions"]
    assert [(row["name"], row["status"]) for row in rows] == [("v001", "held")]
    assert any("300 are needed" in reason for reason in rows[0]["metrics"]["reasons"])
    bundle = read_bundle(Path(rows[0]["folder"]) / "bundle")
    assert bundle.labels == ("crew", "sorting")
    assert [expert.mode for expert in bundle.experts] == ["alora", "lora"]
    assert [expert.twin for expert in bundle.experts] == ["twins/crew", None]
    assert bundle.router is not None


def test_the_report_shows_it(completed: RunDir) -> None:
    page = write_report(completed.path).read_text(encoding="utf-8")
    assert "Where inputs were sent" in page
    assert "probe (chosen)" in page


def test_stages_one_by_one_give_the_bytes_of_a_whole_run(
    harness: ModuleType, workspace: Workspace, completed: RunDir
) -> None:
    run = harness.create(workspace, experts_value())
    for number, phase in enumerate(("P0", "P2", None), start=1):
        run.write_until(phase)
        assert harness.attempt(run, number) == 0, run.exit_status()
        assert set(harness.phase_metrics(run)) >= ({"P0"} if phase == "P0" else {"P0", "P1", "P2"})
    assert harness.digests(run.export / "experts", ".safetensors") == harness.digests(
        completed.export / "experts", ".safetensors"
    )


def test_an_adapter_that_changed_under_a_run_is_not_used(
    harness: ModuleType, workspace: Workspace, completed: RunDir
) -> None:
    run = RunDir(Path(shutil.copytree(completed.path, workspace.runs / completed.id)))
    weights = run.path / "adapters" / "experts" / "crew" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    done = harness.phase_metrics(completed)
    moved = json.loads(json.dumps(done).replace(str(completed.path), str(run.path)))
    recipe = ExpertsRecipe(parse_job(run.job()), Plan.from_dict(run.plan()), run)  # type: ignore[arg-type]
    recipe.restore(None, done)
    with pytest.raises(CheckpointError, match="experts/crew"):
        recipe.restore(None, moved)


def test_a_second_bundle_is_compared_with_the_one_in_service(
    harness: ModuleType, completed: RunDir, tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(completed.path.parent.parent, tmp_path / "w")))
    with Client(workspace) as client:
        client.call("version_restore", lineage="experts", version="v001", by="me", reason="by hand")
    run = harness.create(workspace, experts_value(name="again"))
    with harness.hosted(workspace) as host:
        harness.start(host, run)
        assert harness.finish(host, run)["status"] == "completed", run.worker_log.read_text("utf-8")
    result = run.result() or {}
    settings = result["experts"]["end_to_end"]["settings"]
    # The same job makes the same bundle: it says the same, row by row, and does not take the other's place.
    assert settings["in_service"]["version"] == "v001"
    assert settings["in_service"]["value"] == settings["routed"]["value"]
    assert (settings["in_service"]["routed_gained"], settings["in_service"]["routed_lost"]) == (0, 0)
    assert any("with v001, which is in service" in reason for reason in result["version"]["reasons"])
    assert "v001, which is in service" in write_report(run.path).read_text(encoding="utf-8")
    with Client(workspace) as client:
        rows = client.call("versions", lineage="experts")["versions"]
    assert [(row["name"], row["status"]) for row in rows] == [("v002", "held"), ("v001", "current")]
    moves = [("--version", "v002"), (), ("--version", "v002")]
    for wanted, options in zip(["v002", "v001", "v002"], moves, strict=True):
        assert CliRunner().invoke(app, ["rollback", *options, "-w", str(workspace.root)]).exit_code == 0
        assert find_bundle(workspace, "experts", None).folder.parent.name == wanted
