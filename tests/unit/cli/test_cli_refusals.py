"""Everything a person can get wrong: what is found, what to do, and the exit code of its kind of error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard import errors
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.specs.yaml_io import dump_yaml, read_yaml

WriteJob = Callable[..., str]
SIGN = ("--by", "A Person", "--accept", "I accept responsibility for this run")


def refused(called: Any, error: type[errors.ScalerError], *words: str) -> None:
    """The exit code of that error, and a message that holds every one of `words`."""
    assert called.code == error.exit_code, called.out + called.err
    assert called.err.startswith("error: ")
    assert "Traceback" not in called.err
    for word in words:
        assert word in called.err, f"{word!r} is not in\n{called.err}"


# The contract


def test_an_unsigned_job_does_not_run(scaler: Any, write_job: WriteJob) -> None:
    refused(scaler("run", write_job()), errors.ContractNotAcceptedError, "no contract", "scaler sign")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("contract_version", "2.0.0", ('"2.0.0"', "1.0.0", "scaler sign")),
        ("contract_version", "newest", ("not a semantic version",)),
        ("authorized_by", "", ("contract.authorized_by is empty",)),
        ("approved_at", "yesterday", ("not a time", "ISO 8601")),
        ("approved_at", "2999-01-01T00:00:00+00:00", ("future", "clock")),
        ("signoff", "I accept", ("I accept responsibility for this run", "letter for letter")),
        ("rollback_plan", "", ("contract.rollback_plan is empty",)),
        ("job_hash", "", ("never signed",)),
    ],
)
def test_a_wrong_contract_does_not_run(
    scaler: Any, write_job: WriteJob, tmp_path: Path, field: str, value: str, words: tuple[str, ...]
) -> None:
    job = write_job()
    assert scaler("sign", job, *SIGN).code == 0
    content = read_yaml(tmp_path / job)
    content["contract"][field] = value
    (tmp_path / job).write_text(dump_yaml(content))
    refused(scaler("run", job), errors.ContractNotAcceptedError, *words)


def test_a_job_changed_after_signing_does_not_run(scaler: Any, write_job: WriteJob, tmp_path: Path) -> None:
    job = write_job()
    assert scaler("sign", job, *SIGN).code == 0
    content = read_yaml(tmp_path / job)
    content["training"]["max_steps"] = 5000
    (tmp_path / job).write_text(dump_yaml(content))
    refused(scaler("run", job), errors.ContractNotAcceptedError, "changed after it was signed", "sign again")
    assert not list((tmp_path / "space").rglob("run.json"))


def test_remote_code_needs_the_contracts_word(scaler: Any, write_job: WriteJob) -> None:
    job = write_job(model={"trust_remote_code": True})
    refused(scaler("sign", job, *SIGN), errors.ContractNotAcceptedError, "remote code", "trust_remote_code")


# The job file


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"trainning": {}}, errors.UnknownKeyError, ('unknown key "trainning"', 'did you mean "training"')),
        ({"training": {"max_step": 1}}, errors.UnknownKeyError, ("training.max_step", '"max_steps"')),
        ({"training": {"max_steps": 0}}, errors.SpecError, ("training.max_steps", "greater than or equal")),
        ({"training": {"max_steps": "many"}}, errors.SpecError, ("training.max_steps", "many")),
        ({"recipe": "shrink"}, errors.SpecError, ('recipe is "shrink"', "grow")),
        ({"name": "../up"}, errors.SpecError, ("name",)),
        ({"safety": {"gates": {"response_window_sec": 5}}}, errors.SpecError, ("response_window_sec", "30")),
        ({"scaling": {"context_schedule": [256, 128]}}, errors.SpecError, ("must rise strictly",)),
        ({"scaling": {"template": "heroic"}}, errors.SpecError, ("heroic", "balanced_scaling")),
        ({"scaling": {"target_context": 64}}, errors.SpecError, ("64", "128")),
        (
            {"scaling": {"target_context": 512, "context_schedule": [128, 512]}},
            errors.LimitError,
            ("from 128 to 512", "at most 2 times per gate", "[256, 512]"),
        ),
    ],
)  # fmt: skip
def test_a_wrong_job_does_not_plan(
    scaler: Any,
    write_job: WriteJob,
    changes: dict[str, Any],
    error: type[errors.ScalerError],
    words: tuple[str, ...],
) -> None:
    refused(scaler("plan", write_job(**changes)), error, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", ("not plain YAML",)),
        ("a: &x [1]\nb: *x\n", ("alias",)),
        ("name: one\nname: two\n", ('"name" twice', "line 2")),
        ("model: !!python/object/apply:os.system ['true']\n", ("not plain YAML", "python")),
        ("- just\n- a list\n", ("list", "scaler init")),
        ("", ("nothing", "scaler init")),
    ],
)
def test_bad_yaml_is_refused(scaler: Any, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    (tmp_path / "job.yaml").write_text(text)
    refused(scaler("plan", "job.yaml"), errors.SpecError, *words)


def test_a_missing_job_file_is_named(scaler: Any) -> None:
    refused(scaler("plan", "nowhere.yaml"), errors.SpecError, "nowhere.yaml", "scaler init")


# The data


def test_a_missing_data_file_is_named(scaler: Any, write_job: WriteJob) -> None:
    called = scaler("plan", write_job(dataset={"identifier": "absent.jsonl"}))
    refused(called, errors.DataFileMissingError, "absent.jsonl", "what to do")


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ("", errors.EmptyDataError, ("rows.jsonl",)),
        ('{"text": "good"}\nnot json at all\n', errors.RowError, ("rows.jsonl", "2", "JSON")),
        ('{"text": "good"}\n[1, 2]\n', errors.RowError, ("rows.jsonl", "2")),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 12
            + '{"instruction": "a", "output": "b"}\n' * 12,
            errors.FormatError,
            ("rows.jsonl", "messages", "alpaca"),
        ),
        ('{"colour": "blue"}\n' * 12, errors.FormatError, ("rows.jsonl", "colour")),
    ],
)
def test_wrong_data_does_not_plan(
    scaler: Any, write_job: WriteJob, tmp_path: Path, content: str, error: type[errors.ScalerError],
    words: tuple[str, ...],
) -> None:  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(content)
    called = scaler("plan", write_job(dataset={"identifier": "rows.jsonl"}))
    refused(called, error, *words)
    assert "what to do" in called.err


# The model


def test_a_model_that_is_not_here_says_how_to_get_it(scaler: Any, write_job: WriteJob) -> None:
    called = scaler("plan", write_job(model={"base_model": "someone/some-model"}))
    refused(called, errors.ModelNotFoundError, "someone/some-model", "hf download")


def test_a_model_that_does_not_fit_says_what_would(
    scaler: Any, write_job: WriteJob, huge_model: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(resolve_model("seedling") / name, huge_model)
    called = scaler("plan", write_job(model={"base_model": str(huge_model)}))
    refused(called, errors.DoesNotFitError, "GiB", "what to do", "fit")


def test_pickle_weights_are_refused(scaler: Any, write_job: WriteJob, tiny_model: Any) -> None:
    folder = tiny_model()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    called = scaler("plan", write_job(model={"base_model": str(folder)}))
    refused(called, errors.UnsafeWeightsError, "pytorch_model.bin", "safetensors")


def test_remote_code_is_refused(scaler: Any, write_job: WriteJob, tiny_model: Any) -> None:
    folder = tiny_model(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    called = scaler("plan", write_job(model={"base_model": str(folder)}))
    refused(called, errors.RemoteCodeError, "auto_map", "trust_remote_code")


def test_a_model_without_rope_keeps_its_context(scaler: Any, write_job: WriteJob, gpt2_model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(resolve_model("seedling") / name, gpt2_model)
    called = scaler("plan", write_job(model={"base_model": str(gpt2_model)}))
    refused(called, errors.NotExtendableError, "learned table", "RoPE", "target_context")


# Runs and workspace


def test_a_run_that_does_not_exist(scaler: Any) -> None:
    for command in ("approve", "rollback", "resume", "watch", "report"):
        refused(scaler(command, "grow-0099"), errors.RunNotFoundError, "grow-0099")
    refused(scaler("runs", "show", "latest"), errors.RunNotFoundError)


def test_a_phase_that_is_none(scaler: Any) -> None:
    refused(scaler("rollback", "latest", "--to-phase", "two"), errors.SpecError, '"two" is no phase', "P2")


def test_a_workspace_that_is_a_file(scaler: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(scaler("runs", "list", "-w", "file"), errors.WorkspaceError, "file", "--workspace")


# As JSON


def test_with_json_the_error_is_one_object_on_the_last_line(scaler: Any, write_job: WriteJob) -> None:
    called = scaler("run", write_job(), "--json")
    assert called.code == errors.ContractNotAcceptedError.exit_code
    assert set(called.last) == {"error", "found", "expected", "todo"}
    assert called.last["error"] == "ContractNotAcceptedError"
    assert "scaler sign" in called.last["todo"]
    assert json.loads(called.out), "nothing but the object on standard output"
