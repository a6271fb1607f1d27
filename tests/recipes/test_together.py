"""Training by torchrun's processes: the weights of one process, going on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file

from scaler_wizard.errors import ContractNotAcceptedError, ProcessGroupError
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.session import FULL_WEIGHTS, ModelSession
from scaler_wizard.recipes.together import main
from scaler_wizard.specs.yaml_io import dump_yaml
from scaler_wizard.training.forward import make_objective
from scaler_wizard.training.loop import train


def write_job(harness: ModuleType, folder: Path, strategy: str) -> tuple[Any, Path]:
    value = harness.job_value(
        scaling={"strategy": strategy},
        training={"max_steps": 3, "micro_batch_tokens": 256},
    )
    value["model"]["precision"] = "float32"
    job = harness.signed(value, folder)
    path = folder / "job.yaml"
    path.write_text(dump_yaml(job.model_dump(mode="json", by_alias=True)))
    return job, path


def torchrun(job: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run",
        "--standalone", "--nproc-per-node", "2",
        "-m", "scaler_wizard.recipes.together", str(job), "--out", str(out), "--timeout-sec", "60", *options,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(
    ("strategy", "parallel"),
    [("lora", "replicated"), ("full", "sharded")],
)
@pytest.mark.slow
def test_two_processes_train_as_one(
    harness: ModuleType, tmp_path: Path, strategy: str, parallel: str
) -> None:
    job, path = write_job(harness, tmp_path, strategy)
    out = tmp_path / "out"
    told = torchrun(path, out, "--parallel", parallel, "--until", "2")
    told += torchrun(path, out, "--parallel", parallel)
    assert [step["step"] for step in told] == [1, 2, 3], "the second start goes on after the first"

    plan = Plan.from_dict(json.loads((out / "plan.json").read_text())["plan"])
    session = ModelSession(job, plan, plan.base_context)
    phase = plan.phase("P1")
    training = session.training(
        phase, session.rows_at(phase.context).rows, session.text_rows(phase.context), phase.steps
    )
    alone = list(
        train(
            session.adapted, training.batches, make_objective("sft"), training.settings, state=training.state
        )
    )
    assert [step["loss"] for step in told] == [pytest.approx(step.loss, rel=1e-5) for step in alone]
    assert [step["tokens"] for step in told] == [step.tokens for step in alone]
    if strategy == "lora":
        found = load_file(out / "adapter" / "adapter_model.safetensors")
        expected = {name.replace(".default", ""): item for name, item in training.state.parameters.items()}
    else:
        found, expected = load_file(out / FULL_WEIGHTS), dict(training.state.parameters)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() < 1e-3 * value.detach().norm(), name


def test_without_torchrun_or_signature_it_says_so(
    harness: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    _, path = write_job(harness, tmp_path, "lora")
    assert main([str(path), "--out", str(tmp_path / "out")]) == ProcessGroupError.exit_code
    assert "torchrun --standalone" in capsys.readouterr().err
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    unsigned = tmp_path / "unsigned.yaml"
    unsigned.write_text(dump_yaml(harness.job_value()))
    assert main([str(unsigned), "--out", str(tmp_path / "out")]) == ContractNotAcceptedError.exit_code
    assert not (tmp_path / "out").exists()
