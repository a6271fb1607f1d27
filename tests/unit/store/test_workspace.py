import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scaler_wizard.errors import RunNotFoundError, WorkspaceError
from scaler_wizard.store.workspace import Workspace, default_root


def test_create_makes_private_folders_and_is_repeatable(tmp_path):
    root = tmp_path / "ws"
    Workspace.create(root)
    workspace = Workspace.create(root)
    assert root.stat().st_mode & 0o777 == 0o700
    for folder in (workspace.runs, workspace.models, workspace.inbox, workspace.templates, workspace.logs):
        assert folder.is_dir()
    assert workspace.flight_log == root / "logs" / "flight_log.jsonl"
    assert Workspace.open(root).database == root / "state.db"


def test_open_and_create_refuse_with_advice(tmp_path):
    with pytest.raises(WorkspaceError, match="scaler init"):
        Workspace.open(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkspaceError, match="SCALER_WORKSPACE"):
        Workspace.create(tmp_path / "file")
    partial = tmp_path / "partial"
    (partial / "runs").mkdir(parents=True)
    with pytest.raises(WorkspaceError, match="has no models"):
        Workspace.open(partial)


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("SCALER_WORKSPACE", str(tmp_path / "mine"))
    assert default_root() == tmp_path / "mine"
    monkeypatch.delenv("SCALER_WORKSPACE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / "scaler-workspace"


def test_socket_path_fits_a_socket_address(tmp_path):
    deep = tmp_path / ("d" * 100)
    workspace = Workspace.create(deep)
    path = workspace.socket
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path == Workspace.open(deep).socket
    assert path != Workspace.create(tmp_path / ("e" * 100)).socket
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    path.unlink()
    path.parent.chmod(0o755)
    with pytest.raises(WorkspaceError, match="not a private directory"):
        _ = workspace.socket
    path.parent.rmdir()


def test_short_socket_path_stays_in_the_workspace():
    assert Workspace(Path("/w")).socket == Path("/w/host.sock")


def test_run_ids_count_per_name(tmp_path):
    workspace = Workspace.create(tmp_path)
    ids = [workspace.new_run_dir(name).id for name in ("grow", "grow", "other", "grow")]
    assert ids == ["grow-0001", "grow-0002", "other-0001", "grow-0003"]
    long = workspace.new_run_dir("n" * 64)
    assert len(long.id) == 64
    assert workspace.run_dir(long.id).identity().name == "n" * 64
    with pytest.raises(WorkspaceError):
        workspace.new_run_dir("../evil")


def test_run_ids_are_unique_between_processes(tmp_path):
    Workspace.create(tmp_path)
    code = (
        "import sys; from pathlib import Path; from scaler_wizard.store.workspace import Workspace\n"
        "print([Workspace.open(Path(sys.argv[1])).new_run_dir('r').id for _ in range(10)])"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ids = [run_id for worker in workers for run_id in eval(worker.communicate()[0])]
    assert len(set(ids)) == 20


def test_run_dir_lookup(tmp_path):
    workspace = Workspace.create(tmp_path)
    with pytest.raises(RunNotFoundError, match="scaler run"):
        workspace.run_dir("latest")
    for name in ("grow", "grow", "alpha"):
        workspace.new_run_dir(name)
    # "latest" goes by the time of creation, not by name
    identity = json.loads((workspace.runs / "grow-0001" / "run.json").read_text())
    (workspace.runs / "grow-0001" / "run.json").write_text(json.dumps({**identity, "created": 9e9}))
    assert workspace.run_dir("latest").id == "grow-0001"
    assert workspace.run_dir("al").id == "alpha-0001"
    assert workspace.run_dir("grow-0002").id == "grow-0002"
    assert [run.id for run in workspace.run_dirs()] == ["grow-0002", "alpha-0001", "grow-0001"]
    with pytest.raises(RunNotFoundError, match="beginning of 2 runs"):
        workspace.run_dir("grow")
    with pytest.raises(RunNotFoundError, match='did you mean "alpha-0001"'):
        workspace.run_dir("alhpa-0001")
    for bad in ("", "../x", "zzz"):
        with pytest.raises(RunNotFoundError):
            workspace.run_dir(bad)


def test_links_in_runs_are_not_runs(tmp_path):
    workspace = Workspace.create(tmp_path)
    (workspace.runs / "etc-0001").symlink_to("/etc")
    with pytest.raises(RunNotFoundError):
        workspace.run_dir("etc-0001")


def test_store_modules_do_not_import_heavy_packages():
    light = ("workspace", "checkpoints", "events_file", "lock", "flightlog", "snapshots", "states", "records")
    heavy = ("torch", "transformers", "sqlalchemy", "alembic", "numpy")
    imports = "".join(f"import scaler_wizard.store.{name}\n" for name in light)
    code = f"{imports}import sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
