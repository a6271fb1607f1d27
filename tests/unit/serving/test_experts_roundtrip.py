"""A bundle on the command line: asked, imported, put into service and back, its files of questions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scaler_wizard.cli.experts import app
from scaler_wizard.errors import (
    DataError,
    EmptyDataError,
    IncompatibleModelError,
    ModelNotFoundError,
    UnknownExpertError,
    UsageError,
)
from scaler_wizard.jobs.client import Client
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.serving.engine_process import EngineProcess
from scaler_wizard.store.experts_bundle import read_bundle
from scaler_wizard.store.experts_import import bring
from scaler_wizard.store.workspace import Workspace


def scaler(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output.splitlines()


def last(lines: list[str]) -> dict[str, Any]:
    value = json.loads(lines[-1])
    assert isinstance(value, dict)
    return value


def test_an_imported_bundle_answers_as_the_one_it_was_copied_from(
    bundle_folder: Path, engine: EngineProcess, tmp_path: Path
) -> None:
    gone = changed_copy(bundle_folder, tmp_path / "gone", base="nowhere/model")
    space, base = ("-w", str(tmp_path / "w")), str(resolve_model("seedling"))
    with pytest.raises(ModelNotFoundError, match="say where it is with --base"):
        scaler("import", str(gone), *space)
    assert not (tmp_path / "w").exists()
    made = last(scaler("import", str(gone / "loras.json"), "--base", base, *space, "--json"))
    assert set(made["adapters"]) == {"north", "south", "plain"}
    assert Path(made["folder"]).is_relative_to(tmp_path / "w" / "models" / "experts" / "v001")
    assert (made["base"], read_bundle(Path(made["folder"])).base) == (base, base)
    assert not (tmp_path / "w" / "imported").exists()
    question = "Sort: d b a c"
    with pytest.raises(ModelNotFoundError, match="name one with --version"):
        scaler("ask", question, *space)
    answer = last(scaler("ask", question, "--version", "v001", *space, "--json"))
    before = engine.submit(question).result(60)
    assert (answer["answer"], answer["expert"]) == (before.answer, before.expert)
    assert answer["confidence"] == pytest.approx(before.confidence)


def test_what_was_imported_goes_into_service_and_back_by_hand_alone(
    bundle_folder: Path, tmp_path: Path
) -> None:
    space = Workspace.create(tmp_path / "w")
    other = changed_copy(bundle_folder, tmp_path / "other", max_new_tokens=3)
    for folder, name in ((bundle_folder, "v001"), (other, "v002")):
        with bring(space, folder) as bundle, Client(space) as client:
            row = client.call("experts_import", lineage="experts", folder=str(bundle.folder))
        assert (row["name"], row["status"]) == (name, "held")
        if name == "v001":
            scaler("rollback", "--version", name, "-w", str(space.root))
    assert statuses(space) == {"v001": "current", "v002": "held"}
    for listed in last(scaler("list", "-w", str(space.root), "--json"))["versions"]:
        assert listed["metrics"]["reasons"] == ["imported, not measured here"]
    scaler("rollback", "--version", "v002", "-w", str(space.root))
    assert statuses(space) == {"v001": "superseded", "v002": "current"}
    scaler("rollback", "-w", str(space.root))
    assert statuses(space) == {"v001": "current", "v002": "superseded"}


def statuses(space: Workspace) -> dict[str, str]:
    found = last(scaler("list", "-w", str(space.root), "--json"))["versions"]
    return {row["name"]: row["status"] for row in found}


def changed_copy(bundle_folder: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(bundle_folder, folder)
    value = json.loads((folder / "loras.json").read_text(encoding="utf-8"))
    (folder / "loras.json").write_text(json.dumps(value | changes), encoding="utf-8")
    return folder


def test_a_bundle_of_another_base_does_not_enter(bundle_folder: Path, tmp_path: Path) -> None:
    other = changed_copy(bundle_folder, tmp_path / "other", base_sha256="0" * 64)
    with pytest.raises(IncompatibleModelError, match="other weights than the base"):
        scaler("import", str(other), "-w", str(tmp_path / "w"))
    assert not list((tmp_path / "w" / "models").iterdir())
    assert not (tmp_path / "w" / "imported").exists()


def test_a_file_of_questions_is_answered_line_by_line(bundle_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    rows = [{"prompt": "Sort: b a"}, {"prompt": " "}, {"prompt": "a", "expert": "nobody"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = scaler("serve-once", str(file), "--folder", str(bundle_folder), "--json")
    found = [json.loads(line) for line in lines]
    assert found[0].keys() == {"answer", "expert", "confidence", "abstained"}
    assert [line["error"] for line in found[1:3]] == ["RowError", "UnknownExpertError"]
    assert found[3] == {"questions": 3, "answered": 1, "refused": 2}


def test_bench_goes_on_behind_a_question_that_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    nobody = {"prompt": "a", "expert": "nobody"}
    rows = [nobody, {"prompt": "Sort: b a"}, {"question": "a"}, {"prompt": "Sort: d c"}, nobody,
            {"prompt": "a", "image": "no.png"}]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = scaler("bench", str(file), "--folder", str(bundle_folder), "--json")
    assert 'refused 2: no expert "nobody"' in lines
    found = last(lines)
    assert (found["questions"], found["refused"], sum(found["reasons"].values())) == (2, 4, 4)
    assert found["work"]["prefills"] == 2


@pytest.mark.parametrize("command", ["serve-once", "bench"])
def test_a_file_of_which_nothing_can_be_asked_is_an_error(tmp_path: Path, command: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "a"}\n{"prompt": 7}\n', encoding="utf-8")
    with pytest.raises(DataError, match="row 1: unknown key 'question'"):
        scaler(command, str(file), "--folder", str(tmp_path))


def test_a_file_of_which_nothing_is_answered_is_an_error(bundle_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "a", "expert": "nobody"}\n{"prompt": " "}\n', encoding="utf-8")
    with pytest.raises(UnknownExpertError):
        scaler("bench", str(file), "--folder", str(bundle_folder))


@pytest.mark.parametrize("command", ["serve-once", "bench"])
def test_a_file_without_questions_is_refused_before_anything_is_loaded(command: str, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(EmptyDataError):
        scaler(command, str(file), "--folder", str(tmp_path))


def test_a_device_that_is_none_is_refused_in_the_words_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--device cudaa"):
        scaler("ask", "hello", "--folder", str(tmp_path), "--device", "cudaa")
