"""A command line that is not understood, a place that is no workspace, and tables on a narrow terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from scaler_wizard import errors
from scaler_wizard.cli.main import COMMANDS, app
from scaler_wizard.store.workspace import Workspace

Scaler = Callable[..., Any]
OBJECT = {"error", "found", "expected", "todo"}


@pytest.mark.parametrize(
    ("arguments", "found", "see"),
    [
        (("statu",), "No such command 'statu'", "scaler --help"),
        (("data", "validate"), "Missing argument 'file'", "scaler data validate --help"),
        (("data", "generate", "x", "--count", "0"), "'--count'", "scaler data generate --help"),
        (("data", "validate", "x", "--level", "nope"), "'nope' is not one of", "scaler data validate --help"),
        (("queue", "nope"), "No such command 'nope'", "scaler queue --help"),
        (("health", "extra"), "unexpected extra argument", "scaler health --help"),
    ],
)
def test_a_command_line_that_is_not_understood(
    scaler: Scaler, arguments: tuple[str, ...], found: str, see: str
) -> None:
    plain, as_json = scaler(*arguments), scaler(*arguments, "--json")
    assert (plain.code, as_json.code) == (2, 2)
    assert found in plain.err
    assert f"what to do: see `{see}`" in plain.err
    assert plain.out == ""
    assert set(as_json.last) == OBJECT
    assert found in as_json.last["found"]
    assert "Value error" not in as_json.last["found"]


@pytest.mark.parametrize("answer", ["", "n\n"])
def test_a_question_without_a_yes_is_one_object_too(
    scaler: Scaler, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    assert scaler("backup", "create").code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    called = scaler("backup", "restore", "--json")
    assert called.code == 2
    assert set(called.last) == OBJECT


def test_help_without_arguments(scaler: Scaler) -> None:
    called = scaler()
    assert called.code == 2
    assert all(name in called.out for name in COMMANDS)
    assert "Usage: scaler " in called.out
    assert "completion" not in scaler("queue", "--help").out


@pytest.mark.parametrize(
    "command",
    [
        ("status",), ("queue", "list"), ("runs", "list"), ("models", "list"), ("health",), ("backup", "list"),
        ("retention", "--dry-run"), ("pause",), ("resume",), ("daemon", "start"), ("daemon", "stop"),
        ("report",), ("config", "get"), ("watch",),
    ],
)  # fmt: skip
def test_what_only_looks_makes_no_workspace(scaler: Scaler, tmp_path: Path, command: tuple[str, ...]) -> None:
    called = scaler(*command, "-w", "tpyo", "--json")
    assert called.code == errors.WorkspaceError.exit_code
    assert "tpyo" in called.last["found"]
    assert "daemon init" in called.last["todo"]
    assert not (tmp_path / "tpyo").exists()


def test_a_lost_folder_is_no_lost_workspace(scaler: Scaler, tmp_path: Path) -> None:
    (tmp_path / "space" / "templates").rmdir()
    assert scaler("status").code == 0
    assert (tmp_path / "space" / "templates").is_dir()


def test_a_negative_value_is_a_value(scaler: Scaler) -> None:
    assert scaler("daemon", "init").code == 0
    refused = scaler("config", "set", "training.learning_rate", "-1", "--json")
    assert refused.code == errors.SpecError.exit_code
    assert refused.last["found"] == "training.learning_rate is the number -1"
    words = scaler("config", "set", "validation.rows", "many", "--json").last
    assert (words["found"], words["expected"]) == ("validation.rows is the text 'many'", "a whole number")


def test_a_backups_name_is_never_cut(scaler: Scaler, monkeypatch: pytest.MonkeyPatch) -> None:
    name = scaler("backup", "create", "--why", "before the long journey", "--json").last["backup"]
    monkeypatch.setenv("COLUMNS", "80")
    shown = scaler("backup", "list").out
    assert name in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_every_argument_and_option_says_what_it_is(scaler: Scaler) -> None:
    group: Any = get_command(app)
    for name in COMMANDS:
        _, command, _ = group.resolve_command(None, [name])
        for one in [command, *getattr(command, "commands", {}).values()]:
            for parameter in one.params:
                assert len(parameter.help or "") > 3, (name, one.name, parameter.name)


def test_the_daemons_contract_is_signed_with_the_daemons_command(scaler: Scaler) -> None:
    assert scaler("daemon", "init").code == 0
    refused = scaler("daemon", "sign", "--by", "A Person", "--accept", "yes", "--json")
    assert refused.code == errors.ContractNotAcceptedError.exit_code
    assert "`scaler daemon sign`" in refused.last["todo"]


def test_a_run_without_a_plan_cannot_be_followed(scaler: Scaler, tmp_path: Path) -> None:
    run = Workspace(tmp_path / "space").new_run_dir("letters")
    refused = scaler("watch", run.id, "--json")
    assert refused.code == errors.WrongStateError.exit_code
    assert f"scaler runs show {run.id}" in refused.last["todo"]


def test_a_model_that_is_not_there_makes_no_workspace(scaler: Scaler, tmp_path: Path) -> None:
    refused = scaler("daemon", "init", "--model", "/nowhere/model", "-w", "fresh", "--json")
    assert refused.code == errors.ModelNotFoundError.exit_code
    assert not (tmp_path / "fresh").exists()
