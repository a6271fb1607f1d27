"""A real workspace with its database, and signed runs in it; no worker is started."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.jobs.prepare import parse_job
from scaler_wizard.jobs.service import Service
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.hardware import FAKES
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import Plan, make_plan
from scaler_wizard.safety.contract import sign
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.store import attempts
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.lock import boot_id
from scaler_wizard.store.records import Host
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import DATABASE_VARIABLE, Workspace


@pytest.fixture(scope="session")
def signed_job() -> GrowJob:
    job = parse_job(
        {
            "name": "small",
            "model": {"base_model": "seedling"},
            "scaling": {"target_context": 256},
            "dataset": {"source": "synthetic", "identifier": "seedling"},
        },
        Path.cwd(),
    )
    return sign(job, "A Person", None, None, datetime.now(UTC), "a sitting")


@pytest.fixture(scope="session")
def job_plan(signed_job: GrowJob) -> Plan:
    return make_plan(signed_job, FAKES["two_cores"], read_facts(resolve_model("seedling")))


@pytest.fixture
def request_of(signed_job: GrowJob, job_plan: Plan) -> dict[str, Any]:
    """The request that creates the run."""
    job = signed_job.model_dump(mode="json", by_alias=True)
    return {"op": "create", "job": job, "plan": job_plan.as_dict()}


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    # Not tmp_path: a Unix socket's address has 107 bytes, and this one is to be in the workspace.
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        yield Workspace.create(Path(folder))


@pytest.fixture(params=["sqlite", "postgresql"])
def service(
    workspace: Workspace, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Service]:
    """The same operations on both databases."""
    if request.param == "postgresql":
        create: Callable[[], str] = request.getfixturevalue("new_postgres_database")
        monkeypatch.setenv(DATABASE_VARIABLE, create())
    with Service(workspace) as service:
        yield service


@pytest.fixture
def run_id(service: Service, request_of: dict[str, Any]) -> str:
    return str(service.handle(request_of)["run"])


@pytest.fixture
def begin(service: Service) -> Callable[[str], int]:
    """begin(run) -> the token of a fresh attempt, as if a worker had been started."""

    def start(run: str) -> int:
        with service.database.session() as connection:
            return attempts.start_attempt(connection, run, Host("here", os.getpid(), boot_id()), 1.0).number

    return start


def commit(run_dir: RunDir, *phases: str) -> None:
    """Commit a real checkpoint for each phase."""
    store = CheckpointStore(run_dir)
    for phase in phases:
        with store.stage(phase) as staging:
            (staging.path / "weights.txt").write_text(phase)
            staging.commit(step=1, metrics={"perplexity": 2.0})


@pytest.fixture
def commit_phases() -> Callable[..., None]:
    return commit
