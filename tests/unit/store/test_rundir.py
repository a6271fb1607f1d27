import json

import pytest

from scaler_wizard.errors import RunError
from scaler_wizard.specs.cockpit import CockpitPayload
from scaler_wizard.store.rundir import ExitStatus, RunDir

PAYLOAD = {
    "runId": "0" * 8 + "-0000-0000-0000-" + "0" * 12, "timestamp": "2026-01-01T00:00:00Z", "phase": "P1",
    "status": "running",
    "qualityMetrics": {"perplexity": 3.0, "perplexitySlope": None, "accuracy": None,
                       "emergentVibeScore": None,
                       "contextRetention": None, "trend": "steady", "canonicalSentence": "ok"},
    "resourceUsage": {"vramUsedGb": 1, "vramTotalGb": 2, "cpuUtilization": 0.5, "estimatedTimeLeftMin": None,
                      "tokensPerSec": None, "temperature": None, "hybridMode": False, "provider": "local"},
    "humanContract": {"version": "1.0.0", "guaranteesMet": True, "responseWindowSec": 120,
                      "nextDecisionPoint": None},
    "actions": [], "alerts": [], "traceId": "t", "audit": {},
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "grow-0001", "grow")


def test_identity(run):
    identity = run.identity()
    assert (identity.id, identity.name) == ("grow-0001", "grow")
    assert run.created() == identity.created
    assert RunDir(run.path).identity() == identity
    with pytest.raises(FileExistsError):
        RunDir.create(run.path, "grow")


def test_documents_round_trip(run):
    assert run.plan() is None
    assert run.result() is None
    assert run.cockpit_payload() is None
    run.write_job({"name": "ü", "n": 1})
    run.write_plan({"phases": []})
    run.write_result({"perplexity": float("nan")})
    run.write_cockpit_payload(CockpitPayload.model_validate(PAYLOAD))
    assert run.job() == {"name": "ü", "n": 1}
    assert run.plan() == {"phases": []}
    assert run.result() == {"perplexity": None}
    assert run.cockpit_payload().quality_metrics.perplexity == 3.0
    assert json.loads((run.path / "cockpit_payload.json").read_text())["runId"] == PAYLOAD["runId"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '{"a": 1'])
def test_damaged_documents_are_named(run, text):
    for name, read in (("job.json", run.job), ("run.json", run.identity), ("result.json", run.result)):
        (run.path / name).write_text(text)
        with pytest.raises(RunError, match=name):
            read()


def test_missing_job_and_wrong_payload(run):
    with pytest.raises(RunError, match=r"job\.json"):
        run.job()
    (run.path / "cockpit_payload.json").write_text('{"phase": 1}')
    with pytest.raises(RunError, match="cockpit_payload"):
        run.cockpit_payload()


def test_exit_status(run):
    assert run.exit_status() is None
    error = {"error": "DoesNotFitError"}
    status = ExitStatus(
        3, "failed", "out of memory", "use a smaller rank", error, rollback_to="P1", time=12.5
    )
    run.write_exit_status(status)
    assert run.exit_status() == status
    # a status that cannot be read is "interrupted", not an error and not "done"
    for text in ("", "{}", '{"attempt": 1, "outcome": "done"}', '{"attempt": "x", "outcome": "failed"}'):
        (run.path / "exit_status.json").write_text(text)
        assert run.exit_status() is None
