"""Asking a process of its own what a data file would teach a model: torch stays out of this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from scaler_wizard.errors import DataError, ModelError, ScalerError, WorkerDiedError
from scaler_wizard.jobs.crash import Death, classify
from scaler_wizard.jobs.process import ENVIRONMENT, LOG_TAIL_BYTES

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# What the process refuses arrives as three texts and an exit code, which names the family.
_FAMILIES: dict[int, type[ScalerError]] = {family.exit_code: family for family in (DataError, ModelError)}


def measure_data_value(
    model: str, data: Path, *, sample: int, steps: int, learning_rate: float, seed: int
) -> dict[str, Any]:
    """The fields of `evals.data_value.DataValue`, with `teaches` and `words`.

    Raises:
        DataError, ModelError: what the process refused.
        WorkerDiedError: it ended without a word.
    """
    command = [
        sys.executable, "-m", "scaler_wizard.evals.data_value", "--model", model, "--data", str(data),
        "--sample", str(sample), "--steps", str(steps), "--learning-rate", str(learning_rate),
        "--seed", str(seed),
    ]  # fmt: skip
    environment = {**os.environ, **ENVIRONMENT, **OFFLINE}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False
    )
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        answer = None
    if isinstance(answer, dict) and done.returncode == 0:
        return answer
    if isinstance(answer, dict) and "found" in answer:
        family = _FAMILIES.get(done.returncode, WorkerDiedError)
        raise family(answer["found"], answer["expected"], answer["todo"])
    said = done.stderr[-LOG_TAIL_BYTES:].decode("utf-8", "replace")
    raise WorkerDiedError(
        classify(Death(done.returncode, said)).reason,
        "a measurement",
        "set --sample lower, or see the message",
    )
