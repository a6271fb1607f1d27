"""The host's upkeep on a real workspace: config locks, versions, backups, retention and what health finds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest

from scaler_wizard.data.profiles import PROFILES
from scaler_wizard.errors import ModelNotFoundError, SpecError, WorkspaceError, WrongStateError
from scaler_wizard.jobs import retention
from scaler_wizard.jobs.daemon_operations import DaemonOperations
from scaler_wizard.jobs.health_checks import file_checks
from scaler_wizard.jobs.service import Service
from scaler_wizard.jobs.standing import Standing, load_config
from scaler_wizard.safety.contract import sign
from scaler_wizard.specs.continual import ProfileName
from scaler_wizard.specs.yaml_io import dump_yaml
from scaler_wizard.store import backup, config, flightlog, versions
from scaler_wizard.store.ballast import Ballast
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.lock import RunLock
from scaler_wizard.store.queries import create_run, set_status
from scaler_wizard.store.records import NewRun
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.workspace import Workspace

Ask = Callable[..., dict[str, Any]]
# A server has its own backups and its own disk.
sqlite_only = pytest.mark.parametrize("service", ["sqlite"], indirect=True)


@pytest.fixture
def ask(service: Service, workspace: Workspace) -> Ask:
    """One operation; the workspace has a config."""
    config.config_path(workspace).write_text("# mine\nmodel:\n  base_model: seedling\n")
    config.config_path(workspace).chmod(0o600)
    return lambda op, **fields: service.handle({"op": op, **fields})


def learned(service: Service, workspace: Workspace, name: str) -> RunDir:
    """A stopped continual run whose adapter became a version."""
    run = workspace.new_run_dir(name)
    folder = run.export / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_text(name)
    with service.database.session() as connection:
        job = config.load(workspace).model_dump(mode="json", by_alias=True)
        current = versions.current(connection, "assistant")
        create_run(
            connection,
            NewRun(run.id, run.identity().uuid, name, "continual", job, "h", lineage="assistant"),
            run.created(),
        )
        number = current.number if current else None
        run.write_parent(
            {"lineage": "assistant", "version": number, "base": "seedling", "base_version": None}
        )
        result = {"version": {"promote": True}, "export": {"adapter": "export/adapter"}}
        versions.publish(connection, workspace, run, result, time.time())
        set_status(connection, run.id, RunStatus.STOPPED, time.time())
    return run


def kinds(workspace: Workspace) -> list[str]:
    return [entry["kind"] for entry in flightlog.read_entries(workspace.flight_log)]


# Config


def test_before_the_first_run_nothing_is_locked(ask: Ask, workspace: Workspace) -> None:
    answer = ask("config_set", key="lineage.max_length", value=64, by="A")
    assert "sign again" in answer["message"]
    assert "# mine" in config.config_path(workspace).read_text()
    assert kinds(workspace) == ["config_changed"]
    assert "sign again" not in ask("config_set", key="queue.retries", value=1)["message"]


def test_a_locked_key_needs_unlock_and_a_reason(ask: Ask, service: Service, workspace: Workspace) -> None:
    learned(service, workspace, "a")
    wish = {"key": "lineage.max_length", "value": 64}
    for extra in ({}, {"reason": "longer rows"}, {"unlock": True}, {"unlock": True, "reason": " "}):
        with pytest.raises(WrongStateError):
            ask("config_set", **wish, **extra)
    assert backup.list_backups(workspace) == []
    answer = ask("config_set", **wish, unlock=True, reason="longer rows", by="A")
    assert config.load(workspace).lineage.max_length == 64
    assert backup.find(workspace, answer["backup"]).why == "unlock config"
    last = flightlog.read_entries(workspace.flight_log)[-1]
    assert (last["kind"], last["data"]["reason"], last["data"]["to"]) == (
        "config_unlocked",
        "longer rows",
        64,
    )
    assert ask("health_facts")["locked"] == []
    assert [row["key"] for row in ask("config_last_run")["differences"]] == ["lineage.max_length"]


def test_a_locked_key_changed_by_hand_is_found(ask: Ask, service: Service, workspace: Workspace) -> None:
    learned(service, workspace, "a")
    config.change(workspace, "lineage.model_name", "another")
    assert [row["key"] for row in ask("health_facts")["locked"]] == ["lineage.model_name"]


def test_a_key_changed_by_hand_starts_nothing_until_it_is_unlocked_or_put_back(
    ask: Ask, service: Service, workspace: Workspace
) -> None:
    run = learned(service, workspace, "a")
    with service.database.session() as connection:
        set_status(connection, run.id, RunStatus.QUEUED, time.time())
    sign_config(workspace)
    standing = Standing.open(workspace)
    daemon = DaemonOperations(service, standing, Ends())
    assert standing.problem is None

    def problem() -> str:
        sign_config(workspace)
        daemon.operations["dispatch"]({})
        (row,) = service.handle({"op": "queue"})["queued"]
        assert row["why"] == standing.problem
        assert service.dispatcher.blocked["consolidate"] == standing.problem
        return standing.problem or ""

    config.change(workspace, "lineage.max_length", 64)
    assert "lineage.max_length is locked since the first run" in problem()
    assert "from None to 64" in problem()
    with pytest.raises(WrongStateError):
        ask("config_set", key="lineage.max_length", value=64)
    ask("config_set", key="lineage.max_length", value=64, unlock=True, reason="longer rows")
    sign_config(workspace)
    service.handle({"op": "hold"})
    daemon.operations["dispatch"]({})
    assert standing.problem is None
    service.handle({"op": "release"})
    config.change(workspace, "lineage.max_length", 32)
    sign_config(workspace)
    assert "to 32" in problem()
    ask("config_set", key="lineage.max_length", value=None)
    sign_config(workspace)
    service.handle({"op": "hold"})
    daemon.operations["dispatch"]({})
    assert standing.problem is None, "what the last run learned with needs no unlock"


class Ends:
    """A daemon that nothing is asked of."""

    def end(self, now: bool, why: str) -> float:
        raise AssertionError("nobody ends it here")


def sign_config(workspace: Workspace) -> None:
    """As a person would have signed it just now."""
    signed = sign(load_config(workspace), "A Person", None, None, datetime.now(UTC), "a sitting")
    assert signed.contract is not None
    config.change(workspace, "contract", signed.contract.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [("validation.tasks", ["copy", "revers"], "reverse"), ("data.profile", "regime4", "regime3")],
)
def test_names_that_stand_for_nothing_are_refused_before_a_worker_meets_them(
    ask: Ask, workspace: Workspace, key: str, value: Any, nearest: str
) -> None:
    before = config.config_path(workspace).read_bytes()
    with pytest.raises(SpecError) as refused:
        ask("config_set", key=key, value=value)
    assert refused.value.todo == f'did you mean "{nearest}"?'
    assert config.config_path(workspace).read_bytes() == before
    section, _, name = key.partition(".")
    config.config_path(workspace).write_text(
        dump_yaml({"model": {"base_model": "seedling"}, section: {name: value}})
    )
    with pytest.raises(SpecError, match=nearest):
        load_config(workspace)


def test_every_profile_that_a_config_may_name_exists() -> None:
    assert set(get_args(ProfileName)) == set(PROFILES)


def test_a_wrong_value_changes_nothing(ask: Ask, workspace: Workspace) -> None:
    before = config.config_path(workspace).read_bytes()
    for key, value in (("queue.retries", "x"), ("nothing.there", 1)):
        with pytest.raises(SpecError):
            ask("config_set", key=key, value=value)
    assert config.config_path(workspace).read_bytes() == before
    assert backup.list_backups(workspace) == []


# Versions


def test_restore_and_delete_make_a_backup_and_a_line(
    ask: Ask, service: Service, workspace: Workspace
) -> None:
    for name in "ab":
        learned(service, workspace, name)
    with pytest.raises(WrongStateError, match="current"):
        ask("version_delete", version="v002")
    assert "v001 again" in ask("version_restore", version="v001", reason="better", by="A")["message"]
    ask("version_delete", version="2")
    rows = ask("versions")["versions"]
    assert [(row["name"], row["status"]) for row in rows] == [("v002", "deleted"), ("v001", "current")]
    assert kinds(workspace) == ["version_restored", "version_deleted"]
    whys = {item.why for item in backup.list_backups(workspace)}
    assert whys == {"restore version", "delete version"}
    with pytest.raises(ModelNotFoundError):
        ask("version_restore", version="v009")
    with pytest.raises(SpecError):
        ask("version_restore", version="../x")


# Retention


def old_steps(run: RunDir, number: int) -> None:
    """A phase, then step checkpoints that the next phase's checkpoint superseded."""
    store = CheckpointStore(run)
    for phase, kind in (("P0", "phase"), *(("P1", "step"),) * number, ("P1", "phase")):
        with store.stage(phase) as staging:
            (staging.path / "weights.bin").write_bytes(os.urandom(50_000))
            staging.commit(step=1, kind=kind)  # type: ignore[arg-type]


def test_retention_deletes_only_what_nothing_needs(ask: Ask, service: Service, workspace: Workspace) -> None:
    run = learned(service, workspace, "a")
    old_steps(run, 4)
    (run.path / "input").mkdir()
    (run.path / "input" / "a.jsonl").write_text("{}")
    config.change(workspace, "retention.max_gb", 0.0000001)
    assert ask("retention", dry_run=True)["deletions"] == []  # all young
    config.change(workspace, "retention.min_age_hours", 1)
    before = sorted(path.name for path in run.checkpoints.iterdir())
    answer = _later(service, workspace, 100 * 3600.0)
    gone = [name.rpartition("/")[2] for name in answer]
    assert gone == ["P1-0002", "P1-0003", "P1-0004"]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [n for n in before if n not in gone]
    assert (run.path / "input" / "a.jsonl").exists()
    assert CheckpointStore(run).newest_verified().checkpoint is not None
    assert not any((workspace.root / ".trash").iterdir())


def test_retention_keeps_what_the_config_names(ask: Ask, service: Service, workspace: Workspace) -> None:
    run = learned(service, workspace, "a")
    (run.path / "input").mkdir()
    (run.path / "input" / "questions.jsonl").write_text("{}")
    named = {"easy": f"runs/{run.id}/input/questions.jsonl", "medium": "m", "hard": "h"}
    (run.export / "merged").mkdir()
    model = {"base_model": f"runs/{run.id}/export/merged"}
    config.config_path(workspace).write_text(dump_yaml({"model": model, "validation": named}))
    with service.database.session() as connection:
        kept = retention.plan(connection, workspace, config.load(workspace).retention, 0.0).kept
    base = f"runs/{run.id}"
    assert kept[f"{base}/export"] == "model.base_model in the config names it"
    assert kept[f"{base}/input"] == "validation.easy in the config names it"


def _later(service: Service, workspace: Workspace, seconds: float) -> list[str]:
    with service.database.session() as connection:
        section = config.load(workspace).retention
        plan = retention.plan(connection, workspace, section, time.time() + seconds)
    return retention.carry_out(workspace, plan)


def test_an_open_or_held_run_is_left_alone(ask: Ask, service: Service, workspace: Workspace) -> None:
    run = learned(service, workspace, "a")
    old_steps(run, 4)
    config.change(workspace, "retention.max_gb", 0.0000001)
    with RunLock.acquire(run.lock):
        assert _later(service, workspace, 1e6) == []
    with service.database.session() as connection:
        set_status(connection, run.id, RunStatus.PAUSED, time.time())
    assert _later(service, workspace, 1e6) == []


# Health


def found(workspace: Workspace, facts: dict[str, Any], deep: bool = False) -> dict[str, str]:
    later = time.time() + 3600
    return {item.check: item.words for item in file_checks(workspace, facts, deep, later)}


def test_health_sees_each_planted_fault_and_repairs_it(
    ask: Ask, service: Service, workspace: Workspace
) -> None:
    run = learned(service, workspace, "a")
    old_steps(run, 1)
    ask("backup_create", why="test")
    clean = found(workspace, ask("health_facts"), deep=True)
    assert set(clean) <= {"config", "disk"}  # unsigned, and no ballast yet
    (workspace.models / "assistant" / ".staging-x").mkdir()
    workspace.inbox.chmod(0o755)
    (workspace.inbox / "link").symlink_to("/etc/passwd")
    (workspace.runs / "stray-0001").mkdir()
    newest = CheckpointStore(run).head().chain[-1]
    (run.checkpoints / newest / "weights.bin").write_bytes(b"short")
    version = workspace.models / "assistant" / "v001" / "adapter" / "adapter_model.safetensors"
    version.unlink()
    next(iter(backup.list_backups(workspace))).path.joinpath("manifest.json").write_text("{}")
    seen = found(workspace, ask("health_facts"))
    expected = {"leftovers", "permissions", "inbox", "runs", "checkpoints", "versions", "backups"}
    assert expected <= set(seen)
    assert "another size" in seen["checkpoints"]
    for item in file_checks(workspace, ask("health_facts"), False, time.time() + 3600):
        if item.repair is not None:
            item.repair()
    left = found(workspace, ask("health_facts"))
    assert not {"leftovers", "permissions", "checkpoints", "disk"} & set(left)


def test_a_deep_look_finds_a_flipped_bit(ask: Ask, service: Service, workspace: Workspace) -> None:
    learned(service, workspace, "a")
    path = workspace.models / "assistant" / "v001" / "adapter" / "adapter_model.safetensors"
    path.write_text("b")  # of the same length
    assert "versions" not in found(workspace, ask("health_facts"))
    assert "has changed" in found(workspace, ask("health_facts"), deep=True)["versions"]


@sqlite_only
def test_versions_without_a_row_are_entered_as_held(ask: Ask, service: Service, workspace: Workspace) -> None:
    made = ask("backup_create", why="before")["backup"]
    learned(service, workspace, "a")
    service.database.close()
    backup.restore(workspace, backup.find(workspace, made), time.time())
    with Service(workspace) as again:
        assert again.handle({"op": "health_facts"})["orphans"] == ["assistant v001"]
        assert again.handle({"op": "tidy"})["done"] == ["entered assistant v001 as held"]
        (row,) = again.handle({"op": "versions"})["versions"]
        assert (row["status"], Path(row["folder"]).is_dir()) == ("held", True)
        assert again.handle({"op": "health_facts"})["orphans"] == []


@sqlite_only
def test_a_full_disk_gives_up_the_ballast(ask: Ask, service: Service, workspace: Workspace) -> None:
    ballast = Ballast(workspace.root, 0.1)
    assert ballast.reserve()
    with service.database.session() as connection, connection.begin():
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        # SQLite's own words for a full disk, from its own limit.
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def fill(request: dict[str, Any]) -> dict[str, Any]:
        with service.database.session() as connection:
            create_run(connection, NewRun("r", "u", "r", "grow", {"padding": "x" * 1_000_000}, "h"), 1.0)
        return {}

    service.add_operations({"fill": fill})
    with pytest.raises(WorkspaceError, match="no space left"):
        service.handle({"op": "fill"})
    assert not ballast.path.exists()
