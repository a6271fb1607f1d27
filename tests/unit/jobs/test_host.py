"""The host's socket: who may own the workspace, hostile bytes, and clients beside each other."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from scaler_wizard.errors import ContractNotAcceptedError, RunNotFoundError, SpecError, WorkspaceBusyError
from scaler_wizard.jobs.client import Client
from scaler_wizard.jobs.host import MAX_LINE, Host, hosting
from scaler_wizard.jobs.workers import Worker
from scaler_wizard.store.workspace import Workspace


@pytest.fixture
def host(workspace: Workspace) -> Iterator[Host]:
    with hosting(workspace) as host:
        yield host


def exchange(workspace: Workspace, data: bytes) -> bytes:
    """Everything the host answers to `data` before it hangs up or has answered a line."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(workspace.socket))
        try:
            connection.sendall(data)
            return connection.makefile("rb").readline()
        except ConnectionError:
            return b""


@pytest.mark.usefixtures("host")
def test_a_client_talks_to_the_host(workspace: Workspace, request_of: dict[str, Any]) -> None:
    with Client(workspace) as client:
        assert client.hosted
        assert client.call("ping") == {"pid": os.getpid()}
        request = {key: value for key, value in request_of.items() if key != "op"}
        run = client.call("create", **request)["run"]
        assert client.call("show", run=run)["status"] == "queued"


def test_without_a_host_a_client_does_it_itself(workspace: Workspace, request_of: dict[str, Any]) -> None:
    with Client(workspace) as client:
        assert not client.hosted
        client.call("create", job=request_of["job"], plan=request_of["plan"])
        assert len(client.call("runs")["runs"]) == 1


@pytest.mark.usefixtures("host")
def test_errors_keep_their_class_over_the_socket(workspace: Workspace, request_of: dict[str, Any]) -> None:
    with Client(workspace) as client:
        with pytest.raises(RunNotFoundError) as found:
            client.call("show", run="grow-0001")
        assert found.value.exit_code == RunNotFoundError.exit_code
        with pytest.raises(ContractNotAcceptedError, match="scaler sign"):
            client.call("create", job={**request_of["job"], "contract": None}, plan=request_of["plan"])
        with pytest.raises(SpecError):
            client.call("destroy")
        assert client.call("ping"), "the connection is still good"


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    "line",
    [b"not json\n", b"[1]\n", b"null\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"op": {}}\n', b"\n"],
)
def test_hostile_lines_get_an_error(workspace: Workspace, line: bytes) -> None:
    answer = json.loads(exchange(workspace, line))
    assert answer["refused"]["error"] == "SpecError"
    with Client(workspace) as client:
        assert client.call("ping")


@pytest.mark.usefixtures("host")
def test_an_oversized_line_harms_only_its_own_connection(workspace: Workspace) -> None:
    assert exchange(workspace, b"x" * (MAX_LINE + 100_000)) == b""
    with Client(workspace) as client:
        assert client.call("ping")


def test_a_defect_of_ours_is_an_answer_not_the_end(workspace: Workspace, host: Host) -> None:
    def broken(request: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError

    host.service._operations["ping"] = broken
    answer = json.loads(exchange(workspace, b'{"op": "ping"}\n'))
    assert answer["refused"]["error"] == "RunError"
    assert "ZeroDivisionError" in answer["refused"]["found"]
    with Client(workspace) as client:
        assert client.call("runs") == {"runs": []}


@pytest.mark.usefixtures("host")
def test_many_clients_at_once(workspace: Workspace, request_of: dict[str, Any]) -> None:
    def create(_: int) -> str:
        with Client(workspace) as client:
            return str(client.call("create", job=request_of["job"], plan=request_of["plan"])["run"])

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(create, range(16)))
    assert sorted(names) == [f"small-{number:04d}" for number in range(1, 17)]


@pytest.mark.usefixtures("host")
def test_the_socket_is_private(workspace: Workspace) -> None:
    assert stat.S_IMODE(workspace.socket.stat().st_mode) == 0o600


def test_a_dead_hosts_socket_file_is_replaced(workspace: Workspace) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(workspace.socket))
    stale.close()
    with hosting(workspace), Client(workspace) as client:
        assert client.hosted
    assert not workspace.socket.exists()


def test_a_second_host_is_refused_with_the_firsts_process(workspace: Workspace) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from scaler_wizard.jobs.host import hosting\nfrom scaler_wizard.store.workspace import Workspace\n"
        "with hosting(Workspace(Path(sys.argv[1]))):\n    print('up', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(workspace.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == b"up\n"
            with pytest.raises(WorkspaceBusyError, match=f"process {first.pid}"), hosting(workspace):
                pass
            with Client(workspace) as client:
                assert client.call("ping") == {"pid": first.pid}
        finally:
            first.kill()
    with hosting(workspace):
        pass  # its lock died with it


def test_the_host_outlives_a_failing_look_at_its_workers(workspace: Workspace, host: Host) -> None:
    gone = Worker("gone-0001", 1, "cpu", None, None)  # a run whose directory was deleted by hand
    host.service.workers.attached["gone-0001"] = gone
    with Client(workspace) as client:
        for _ in range(3):
            assert client.call("ping")
    assert host.call("runs") == {"runs": []}
