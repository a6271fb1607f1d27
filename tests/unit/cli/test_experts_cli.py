"""`scaler experts` on the command line: what it refuses before loading anything, routing sets by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scaler_wizard.cli.demo_screens import write_screens
from scaler_wizard.cli.experts import app, pace_of
from scaler_wizard.cli.experts_options import find_bundle
from scaler_wizard.data.generators.screens import SCREEN_SKILLS
from scaler_wizard.data.routing import merge_sources
from scaler_wizard.data.routing_sources import RoutingSource
from scaler_wizard.errors import (
    ContractNotAcceptedError,
    DataFileMissingError,
    ModelError,
    ModelNotFoundError,
    ScalerError,
    SpecError,
    UsageError,
)
from scaler_wizard.specs.experts import RoutingSection
from scaler_wizard.specs.yaml_io import dump_yaml
from scaler_wizard.store.workspace import Workspace


def scaler(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def write_job(folder: Path, **changes: Any) -> Path:
    value = {
        "recipe": "experts", "model": {"base_model": "seedling"},
        "experts": [{"label": "a", "generator": "sort"}, {"label": "b", "generator": "reverse"}], **changes,
    }  # fmt: skip
    path = folder / "job.yaml"
    path.write_text(dump_yaml(value), encoding="utf-8")
    return path


def test_a_dry_run_shows_the_stages_and_makes_no_run(tmp_path: Path) -> None:
    said = scaler("train", str(write_job(tmp_path)), "--dry", "--fast", "-w", str(tmp_path / "w"))
    assert "Train routers" in said
    assert "pace fast" in said
    assert not list((tmp_path / "w" / "runs").iterdir())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({}, ContractNotAcceptedError, "no contract"),
        ({"experts": [{"label": "a", "generator": "sort"}, {"label": "a", "generator": "copy"}]},
         SpecError, "given twice"),
        ({"experts": [{"label": "a", "data": "none.jsonl"}, {"label": "b", "generator": "sort"}]},
         DataFileMissingError, 'expert "a" names data that is not there'),
        ({"experts": [{"label": "a", "adapter": "none"}, {"label": "b", "generator": "sort"}]},
         ModelNotFoundError, 'expert "a" names an adapter that is not there'),
        ({"experts": [{"label": "a", "generator": "sorte"}, {"label": "b", "generator": "sort"}]},
         SpecError, 'did you mean "sort"'),
        ({"recipe": "grow", "experts": None}, SpecError, "experts"),
        ({"experts": [{"label": "a", "adapter": "."}, {"label": "b", "generator": "sort"}]},
         SpecError, 'expert "a" has an adapter and no data'),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_loaded(
    tmp_path: Path, changes: dict[str, Any], error: type[ScalerError], words: str
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(error, match=words):
        scaler("run", str(write_job(tmp_path, **changes)), "-w", str(tmp_path / "w"))


def test_a_routing_set_without_a_job(tmp_path: Path) -> None:
    sources = []
    for label in ("a", "b"):
        rows = [{"prompt": f"{label} asks {n * 7919}{label}", "completion": f"{n}"} for n in range(40)]
        (tmp_path / f"{label}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
        sources += ["--source", f"label={label},jsonl={tmp_path / label}.jsonl"]
    (tmp_path / "dataset.yaml").write_text("test_rows: 6\nrows: 20\n", encoding="utf-8")
    said = scaler(
        "generate", *sources, "--dataset", str(tmp_path / "dataset.yaml"), "-w", str(tmp_path / "w"), "--json"
    )
    assert json.loads(said.splitlines()[-1])["counts"]["a"] == {"train": 16, "val": 4, "test": 6}
    made = list((tmp_path / "w" / "datasets").iterdir())
    assert len(made) == 1
    assert (made[0] / "metadata.json").is_file()


def test_generate_wants_a_job_or_sources() -> None:
    with pytest.raises(UsageError):
        scaler("generate")
    with pytest.raises(UsageError):
        pace_of(True, True)
    assert (pace_of(True, False), pace_of(False, True), pace_of(False, False)) == ("fast", "test", "full")


def test_asking_where_nothing_was_promoted_says_what_to_do(tmp_path: Path) -> None:
    space = Workspace.create(tmp_path / "w")
    with pytest.raises(ModelNotFoundError, match="`scaler experts run` makes one"):
        find_bundle(space, "experts", None)
    with pytest.raises(ModelNotFoundError, match="was in service before"):
        scaler("rollback", "-w", str(space.root))
    assert "no experts yet" in scaler("list", "-w", str(space.root))


def test_importing_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no experts at"):
        scaler("import", str(tmp_path), "-w", str(tmp_path / "w"))
    (tmp_path / "loras.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="format"):
        scaler("import", str(tmp_path / "loras.json"), "-w", str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_drawn_screens_are_a_data_set_that_splits_without_leaks(tmp_path: Path) -> None:
    folder = write_screens(tmp_path / "screens", seed=1, rows=24)
    sources = [RoutingSource(skill, skill, path=folder / f"{skill}.jsonl") for skill in SCREEN_SKILLS]
    merged = merge_sources(sources, RoutingSection(rows=8, test_rows=6), list(SCREEN_SKILLS))
    assert all(found == {"train": 6, "val": 2, "test": 6} for found in merged.counts().values())
    shown = [{row.image_sha256 for row in merged.chosen(split)} for split in ("train", "val", "test")]
    assert not shown[0] & shown[1] | shown[0] & shown[2] | shown[1] & shown[2]
