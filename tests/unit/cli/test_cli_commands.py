"""init, recommend, plan, sign, and what is typed at a gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard import errors
from scaler_wizard.cli.ask import Typed, understand
from scaler_wizard.jobs.prepare import load_job
from scaler_wizard.safety.contract import check_job
from scaler_wizard.specs.yaml_io import read_yaml

WriteJob = Callable[..., str]
ACCEPT = "I accept responsibility for this run"


def test_init_writes_a_job_that_plans(scaler: Any, tmp_path: Path, data: Path) -> None:
    called = scaler("init", "--data", str(data), "--json")
    assert called.code == 0, called.err
    assert called.last["job"] == "job.yaml"
    assert (tmp_path / "space" / "runs").is_dir()
    assert load_job(tmp_path / "job.yaml").scaling.target_context == 256
    planned = scaler("plan", "job.yaml", "--json")
    assert planned.code == 0, planned.err
    assert [phase["context"] for phase in planned.last["plan"]["phases"]] == [128, 128, 256, 256]


def test_init_never_overwrites(scaler: Any, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("mine")
    called = scaler("init")
    assert called.code == errors.SpecError.exit_code
    assert "job.yaml exists already" in called.err
    assert (tmp_path / "job.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        (("--data", "absent.jsonl"), errors.DataFileMissingError, "absent.jsonl"),
        (("--out", "nowhere/job.yaml"), errors.SpecError, "nowhere"),
        (("--model", "some/model"), errors.ModelNotFoundError, "hf download"),
        (("--context", "3"), errors.SpecError, "target_context"),
    ],
)
def test_init_refuses_what_cannot_work(
    scaler: Any, tmp_path: Path, arguments: tuple[str, ...], error: type[errors.ScalerError], word: str
) -> None:
    called = scaler("init", *arguments)
    assert called.code == error.exit_code, called.out + called.err
    assert word in called.err
    assert not (tmp_path / "job.yaml").exists()


def test_plan_says_what_would_happen_and_changes_nothing(
    scaler: Any, write_job: WriteJob, tmp_path: Path
) -> None:
    job = write_job()
    before = (tmp_path / job).read_bytes()
    called = scaler("plan", job, "--json")
    assert called.code == 0, called.err
    assert "[[" in called.out, "trained tokens are marked in a pipe"
    sample = called.last["sample"]
    assert any(trained for _, trained in sample["runs"])
    assert sample["end_of_turn_trained"].startswith("yes")
    assert called.last["plan"]["context_schedule"] == [256]
    assert (tmp_path / job).read_bytes() == before
    assert not list((tmp_path / "space" / "runs").iterdir())


def test_recommend_ranks_templates_for_a_machine(scaler: Any) -> None:
    called = scaler("recommend", "--vibe", "budget laptop", "--machine", "budget_laptop", "--json")
    assert called.code == 0, called.err
    scores = [item["score"] for item in called.last["ranked"]]
    assert scores == sorted(scores, reverse=True)
    assert all(item["reasons"] for item in called.last["ranked"])
    assert called.last["ranked"][0]["template"] in called.out.splitlines()[-2]


def test_recommend_refuses_an_unknown_machine(scaler: Any) -> None:
    called = scaler("recommend", "--machine", "abacus")
    assert called.code == 2
    assert "abacus" in called.err
    assert "rtx_3090" in called.err


def test_signing_and_checking_go_together(scaler: Any, write_job: WriteJob, tmp_path: Path) -> None:
    job = write_job()
    with (tmp_path / job).open("a") as file:
        file.write("# a remark of mine\n")
    called = scaler("sign", job, "--by", "A Person", "--accept", ACCEPT, "--json")
    assert called.code == 0, called.err
    signed = load_job(tmp_path / job)
    assert check_job(signed).contract.authorized_by == "A Person"
    assert called.last["contract"]["job_hash"] == read_yaml(tmp_path / job)["contract"]["job_hash"]
    assert "# a remark of mine" in (tmp_path / job).read_text(), "signing keeps comments"


def test_signing_again_replaces_the_contract(scaler: Any, write_job: WriteJob, tmp_path: Path) -> None:
    job = write_job()
    for name in ("First", "Second"):
        assert scaler("sign", job, "--by", name, "--accept", ACCEPT).code == 0
    assert check_job(load_job(tmp_path / job)).contract.authorized_by == "Second"
    assert (tmp_path / job).read_text().count("job_hash") == 1


def test_signing_a_job_in_flow_style(scaler: Any, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "{model: {base_model: seedling}, dataset: {source: synthetic, identifier: seedling}}"
    )
    assert scaler("sign", "job.yaml", "--by", "A Person", "--accept", ACCEPT).code == 0
    check_job(load_job(tmp_path / "job.yaml"))


@pytest.mark.parametrize("sentence", ["I accept", "i accept responsibility for this run", ACCEPT + "."])
def test_only_the_exact_sentence_signs(
    scaler: Any, write_job: WriteJob, tmp_path: Path, sentence: str
) -> None:
    job = write_job()
    called = scaler("sign", job, "--by", "A Person", "--accept", sentence)
    assert called.code == errors.ContractNotAcceptedError.exit_code
    assert ACCEPT in called.err
    assert "contract" not in read_yaml(tmp_path / job)


def test_an_empty_workspace_lists_no_runs(scaler: Any) -> None:
    called = scaler("runs", "list", "--json")
    assert called.code == 0
    assert called.last == {"runs": []}
    assert "no runs yet" in called.out


def test_version_and_usage(scaler: Any) -> None:
    assert scaler("--version").out.startswith("scaler-wizard ")
    assert scaler("grow").code == 2


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("a\n", Typed("approve")),
        ("  Approve \n", Typed("approve")),
        ("b\n", Typed("abort")),
        ("p\n", Typed("pause")),
        ("r\n", Typed("rollback")),
        ("r 1\n", Typed("rollback", "1")),
        ("rollback p2.1\n", Typed("rollback", "P2.1")),
        ("\n", None),
        ("yes\n", None),
        ("ab\n", None),
    ],
)
def test_what_is_typed_at_a_gate(text: str, typed: Typed | None) -> None:
    assert understand(text) == typed
