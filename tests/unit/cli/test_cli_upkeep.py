"""`scaler config|backup|retention|health|models` as a person types them, in a fresh workspace."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Scaler = Callable[..., Any]


@pytest.fixture
def space(tmp_path: Path, scaler: Scaler) -> Path:
    """A workspace with a config."""
    assert scaler("models", "list").code == 0
    path = tmp_path / "space"
    (path / "config.yaml").write_text("# mine\nmodel:\n  base_model: seedling\n")
    (path / "config.yaml").chmod(0o600)
    return path


def test_config_get_set_diff(scaler: Scaler, space: Path) -> None:
    assert scaler("config", "get", "replay", "--json").last["config"]["replay.fraction"] == 0.25
    changed = scaler("config", "set", "replay.fraction", "0.5")
    assert "scaler daemon sign" in changed.out
    assert "# mine" in (space / "config.yaml").read_text()
    rows = scaler("config", "diff", "--json").last["defaults"]
    assert [(row["key"], row["before"], row["after"]) for row in rows] == [("replay.fraction", 0.25, 0.5)]
    wrong = scaler("config", "set", "replay.fracton", "1")
    assert (wrong.code, "did you mean" in wrong.err) == (2, True)


def test_addresses_of_notifications_are_not_shown(scaler: Scaler, space: Path) -> None:
    said = scaler("config", "set", "notify.urls", '["json://me:hunter2@example.org"]', "--json")
    assert said.code == 0
    for shown in (said, scaler("config", "get", "--json"), scaler("config", "diff", "--json")):
        assert "hunter2" not in shown.out + shown.err
    assert "hunter2" not in (space / "logs" / "flight_log.jsonl").read_text()


def test_health_fixes_what_it_can(scaler: Scaler, space: Path) -> None:
    (space / "models").chmod(0o755)
    first = scaler("health", "--fix", "--json")
    assert {row["check"] for row in first.last["findings"]} == {"config", "disk", "permissions"}
    second = scaler("health", "--json")
    assert (second.code, second.last["ok"]) == (1, False)
    assert [row["words"] for row in second.last["findings"]] == ["the job has no contract"]


def test_a_damaged_database_is_found_and_restored(scaler: Scaler, space: Path) -> None:
    scaler("backup", "create")
    path = space / "state.db"
    data = bytearray(path.read_bytes())
    data[4096:12288] = os.urandom(8192)
    path.write_bytes(data)
    sick = scaler("health", "--json")
    assert sick.code == 1
    assert "scaler backup restore" in sick.last["findings"][0]["fix"]
    assert scaler("runs", "list").code == 8
    assert scaler("backup", "list").code == 0
    dry = scaler("backup", "restore", "--dry-run", "--json")
    assert (dry.code, dry.last["dry_run"], path.read_bytes() == bytes(data)) == (0, True, True)
    assert scaler("backup", "restore", "--yes").code == 0
    assert scaler("runs", "list").code == 0


def test_retention_and_models_of_an_empty_workspace(scaler: Scaler, space: Path) -> None:
    assert "nothing needs to go" in scaler("retention", "--dry-run").out
    missing = scaler("models", "restore", "v001")
    assert (missing.code, "no version yet" in missing.err) == (6, True)
    assert scaler("backup", "restore", "none", "--yes").code == 8


def test_a_version_that_is_not_there_is_not_asked_about(
    scaler: Scaler, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    missing = scaler("models", "delete", "v009")
    assert (missing.code, "there is no version v009" in missing.err) == (6, True)
    assert "for good" not in missing.out + missing.err
