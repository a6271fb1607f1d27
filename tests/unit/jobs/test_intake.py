"""Taking files: hostile sidecars, links, files that change under the copy; rows through a real service."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.errors import WrongStateError
from scaler_wizard.jobs.daemon_operations import DaemonOperations
from scaler_wizard.jobs.inbox import Entry
from scaler_wizard.jobs.inbox_io import MAX_DEPTH, UnsettledError, copy_in, look_at, open_below
from scaler_wizard.jobs.intake import Intake
from scaler_wizard.jobs.service import Service
from scaler_wizard.jobs.sidecar import MAX_BYTES, Sidecar, is_lonely_sidecar, read_sidecar
from scaler_wizard.jobs.standing import Standing
from scaler_wizard.safety.contract import sign
from scaler_wizard.specs.yaml_io import dump_yaml
from scaler_wizard.store.workspace import Workspace


def entry_of(root: Path, name: str) -> Entry:
    return next(entry for entry in look_at(root) if entry.path == name)


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"priority": "high", "description": "d"}', Sidecar("high", "d")),
        ("{}", Sidecar()),
        ('{"priority": "low", "other": [1]}', Sidecar("low")),
        ('{"description": "a\\u001b[31mb\\nc"}', Sidecar(description="a[31mb\nc")),
    ],
)
def test_a_sidecar_is_understood(tmp_path: Path, text: str, expected: Sidecar) -> None:
    write(tmp_path / "a.json", text)
    assert read_sidecar(tmp_path, entry_of(tmp_path, "a.json")) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", '{"priority": "urgent"}', '{"priority": {}}', '{"description": 7}', b"\xff\xfe{",
        '{"a": ' + "[" * 20_000, '{"x": "' + "y" * MAX_BYTES + '"}',
    ],
)  # fmt: skip
def test_a_hostile_sidecar_costs_only_itself(tmp_path: Path, text: str | bytes) -> None:
    write(tmp_path / "a.json", text)
    found = read_sidecar(tmp_path, entry_of(tmp_path, "a.json"))
    assert found.priority == "normal"
    assert found.description == ""
    assert found.problem.startswith("a.json")


def test_no_sidecar_and_one_that_has_gone(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path, None) == Sidecar()
    assert read_sidecar(tmp_path, Entry("a.json", "file", 1, 1)).problem


@pytest.mark.parametrize(
    ("text", "lonely"),
    [('{"priority": "high"}', True), ("{}", False), ('{"text": "a"}', False), ("[]", False), ("{", False)],
)
def test_a_sidecar_without_its_file_is_told_from_data(tmp_path: Path, text: str, lonely: bool) -> None:
    write(tmp_path / "a.json", text)
    assert is_lonely_sidecar(tmp_path, entry_of(tmp_path, "a.json")) is lonely


def test_the_look_names_everything_and_follows_nothing(tmp_path: Path) -> None:
    inbox, outside = tmp_path / "inbox", tmp_path / "outside"
    write(inbox / "sub" / "a.jsonl", "12")
    write(outside / "secret.jsonl", "x")
    (inbox / "file").symlink_to(outside / "secret.jsonl")
    (inbox / "folder").symlink_to(outside)
    os.mkfifo(inbox / "pipe")
    deep = inbox.joinpath(*["d"] * (MAX_DEPTH + 1))
    write(deep / "b.jsonl", "x")
    found = {entry.path: entry.kind for entry in look_at(inbox)}
    deep_path = "/".join(["d"] * (MAX_DEPTH + 1))
    assert found == {
        "sub/a.jsonl": "file", "file": "link", "folder": "link", "pipe": "special", deep_path: "deep",
    }  # fmt: skip


def test_no_link_is_opened_on_the_way(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    write(tmp_path / "outside" / "a.jsonl", "secret")
    inbox.mkdir()
    (inbox / "sub").symlink_to(tmp_path / "outside")
    (inbox / "a.jsonl").symlink_to(tmp_path / "outside" / "a.jsonl")
    os.mkfifo(inbox / "pipe")
    for name in ("sub/a.jsonl", "a.jsonl", "pipe", "missing"):
        with pytest.raises(OSError, match=r".+"):
            open_below(inbox, name)


def test_a_copy_has_the_bytes_and_their_hash(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    write(tmp_path / "in" / "a.bin", data)
    found = copy_in(tmp_path / "in", entry_of(tmp_path / "in", "a.bin"), tmp_path / "out", lambda: False)
    assert found == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "out").read_bytes() == data


def test_a_file_that_changes_under_the_copy_is_not_settled(tmp_path: Path) -> None:
    path = write(tmp_path / "in" / "a.bin", bytes(3 << 20))
    entry = entry_of(tmp_path / "in", "a.bin")

    def change() -> bool:
        with path.open("ab") as file:
            file.write(b"more")
        return False

    with pytest.raises(UnsettledError):
        copy_in(tmp_path / "in", entry, tmp_path / "one", change)
    with pytest.raises(UnsettledError):
        copy_in(tmp_path / "in", entry, tmp_path / "two", lambda: False)
    with pytest.raises(UnsettledError):
        copy_in(tmp_path / "in", entry_of(tmp_path / "in", "a.bin"), tmp_path / "three", lambda: True)


class Ends:
    """A daemon that nothing is asked of."""

    def end(self, now: bool, why: str) -> float:
        raise AssertionError("nobody ends it here")


CONFIG: dict[str, Any] = {
    "model": {"base_model": "seedling"}, "queue": {"settle_seconds": 0.0},
    "disk": {"refuse_below_gb": 0.0, "warn_below_gb": 0.0},
}  # fmt: skip
ROW = json.dumps({"prompt": "1 + 1 =", "completion": "2"}) + "\n"


@pytest.fixture
def standing(workspace: Workspace) -> Standing:
    (workspace.root / "config.yaml").write_text(dump_yaml(CONFIG))
    return Standing.open(workspace)


def intake_of(workspace: Workspace, service: Service, standing: Standing) -> Intake:
    operations = DaemonOperations(service, standing, Ends()).operations

    def call(op: str, **fields: Any) -> dict[str, Any]:
        if op in operations:
            return operations[op](fields)
        return service.handle({"op": op, **fields})

    return Intake(workspace, call, lambda: standing.config)


def test_an_unsigned_config_queues_nothing(
    workspace: Workspace, service: Service, standing: Standing
) -> None:
    assert standing.problem is not None
    assert "scaler daemon sign" in standing.problem
    write(workspace.inbox / "a.jsonl", ROW * 30)
    intake = intake_of(workspace, service, standing)
    intake.problem = lambda: standing.problem
    intake.look()
    assert intake.waiting == {"a.jsonl": standing.problem}
    intake.problem = lambda: None
    intake.look()
    assert "contract" in intake.waiting["a.jsonl"], "the host refuses what is not signed, too"


def test_too_little_room_waits_and_says_so(
    workspace: Workspace, service: Service, standing: Standing
) -> None:
    write(workspace.inbox / "a.jsonl", ROW)
    changed = standing.config.disk.model_copy(update={"refuse_below_gb": 1e9})
    standing.config = standing.config.model_copy(update={"disk": changed})
    intake = intake_of(workspace, service, standing)
    intake.look()
    assert "it is taken when there is room" in intake.waiting["a.jsonl"]
    assert not list(workspace.runs.iterdir())


def test_what_a_killed_daemon_left_is_cleared_or_kept(
    workspace: Workspace, service: Service, standing: Standing
) -> None:
    leftover = write(workspace.root / ".incoming" / "x" / "a.jsonl", ROW)
    run_dir = workspace.new_run_dir("orphan")
    copy = write(run_dir.path / "input" / "a.jsonl", ROW)
    intake = intake_of(workspace, service, standing)
    assert not leftover.exists()
    intake.tidy()
    assert copy.exists(), "it may be the only one left"


def test_a_file_that_failed_its_check_is_not_resumed(
    workspace: Workspace, service: Service, standing: Standing
) -> None:
    standing.config = sign(standing.config, "A Person", None, None, datetime.now(UTC), "a sitting")
    write(workspace.inbox / "a.jsonl", b"\x00\xff" * 500)
    intake_of(workspace, service, standing).look()
    (run,) = service.handle({"op": "runs"})["runs"]
    assert run["status"] == "failed"
    resume = {"op": "command", "run": run["run"], "action": "resume", "by": "a tester"}
    with pytest.raises(WrongStateError, match=r"failed before it was planned.*mend the file"):
        service.handle(resume)
    assert service.handle({"op": "show", "run": run["run"]})["status"] == "failed", "it holds up nobody"
