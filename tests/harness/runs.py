"""Real runs at toy size: a workspace, signed jobs, a worker in this process or as the real subprocess.

Nothing is replaced: plans come from `prepare`, runs from the host's `create` and `start`, and a worker is
`recipes.worker.main`. Tests get this module as the fixture `harness`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from scaler_wizard.cli.hosting import hosting
from scaler_wizard.data.generators import sample_example
from scaler_wizard.data.generators.needles import filler_line
from scaler_wizard.jobs.host import Host
from scaler_wizard.jobs.prepare import parse_job, prepare
from scaler_wizard.jobs.service import Service
from scaler_wizard.models.load import load_model
from scaler_wizard.models.tiny import tiny_model
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.recipes import worker
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.safety.contract import sign
from scaler_wizard.specs.continual import ContinualConfig, FileSection
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.store import registry
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.database import Database
from scaler_wizard.store.records import Model
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

WAIT_SEC = 120.0
LESSON_STEPS = 40
"""Steps of the file that fault tests disturb: long enough to be met in the middle."""
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def job_value(model: str | Path = "seedling", **changes: Any) -> dict[str, Any]:
    """A job of seconds: two steps a phase, one rotary method, the smallest probes that still say something.

    `changes` are merged into the sections: `training={"max_steps": 4}` leaves the rest of training.
    """
    value: dict[str, Any] = {
        "recipe": "grow",
        "name": "tiny",
        "model": {"base_model": str(model), "runtime": "cpu"},
        "scaling": {"rope_method": "linear", "lora": {"rank": 4, "alpha": 8}},
        "training": {"max_steps": 2, "context_steps": 2, "batch_tokens": 512, "micro_batch_tokens": 512},
        "dataset": {"source": "synthetic", "identifier": "seedling", "max_rows": 60},
        "evaluation": {"documents": 8, "needles_per_depth": 4, "task_rows": 8, "target_tokens": 16},
        "safety": {"gates": {"ask": "auto_approve"}},
    }
    for section, fields in changes.items():
        value[section] = {**value.get(section, {}), **fields} if isinstance(fields, dict) else fields
    return value


def signed(value: dict[str, Any], folder: Path) -> GrowJob:
    """The job as a person would have signed it just now."""
    return sign(parse_job(value, folder), "a test", None, None, datetime.now(UTC), "session")


def create(workspace: Workspace, value: dict[str, Any]) -> RunDir:
    """Plan and queue a run without starting it."""
    job = signed(value, workspace.root)
    plan = prepare(job, workspace).plan
    with Service(workspace) as service:
        request = {"op": "create", "job": job.model_dump(mode="json", by_alias=True), "plan": plan.as_dict()}
        return workspace.run_dir(service.handle(request)["run"])


Question = tuple[str, str]
LETTER_TASKS = ("copy", "reverse", "double", "rotate", "swap", "append", "replace", "shift")


def continual_config(folder: Path, **changes: Any) -> ContinualConfig:
    """A signed config of seconds: small steps, few questions; `changes` are merged into the sections."""
    value: dict[str, Any] = {
        "model": {"base_model": "seedling", "runtime": "cpu"},
        "lineage": {"lora": {"rank": 4, "alpha": 8}},
        "training": {"max_steps": 3, "batch_tokens": 256, "micro_batch_tokens": 256, "learning_rate": 0.003},
        "validation": {"rows": 8, "tasks": list(LETTER_TASKS), "check_every": 2},
    }
    for section, fields in changes.items():
        value[section] = {**value.get(section, {}), **fields} if isinstance(fields, dict) else fields
    config = ContinualConfig.parse(value, "config")
    return sign(config, "a test", None, None, datetime.now(UTC), "session")


def drop(workspace: Workspace, config: ContinualConfig, path: Path, parent: Metrics | None = None) -> RunDir:
    """Queue the learning of one file, as the daemon does; `parent` is what it would write at the start."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    job = config.job(path.stem, FileSection(path=str(path), name=path.name, sha256=digest))
    plan = prepare(job, workspace).plan
    with Service(workspace) as service:
        request = {"op": "create", "job": job.model_dump(mode="json", by_alias=True), "plan": plan.as_dict()}
        run = workspace.run_dir(service.handle(request)["run"])
    if parent is not None:
        run.write_parent(parent)
    return run


def next_parent(*runs: RunDir, version: int) -> Metrics:
    """parent.json for the file after some completed runs of a lineage, the newest of them last."""
    result = runs[-1].result()
    assert result is not None
    export, model = result["export"], result["model"]
    full = "full" in export
    return {
        "lineage": result["parent"]["lineage"], "version": version, "sha256": None,
        "base": export["full"] if full else model["path"], "base_version": version if full else None,
        "base_sha256": None if full else model["weights_sha256"], "adapter": export.get("adapter"),
        "replay": [run.job()["file"]["path"] for run in runs], "replay_missing": [],
        "lineage_runs": len(runs),
    }  # fmt: skip


def task_rows(tasks: tuple[str, ...], levels: tuple[int, ...], rows: int, seed: int = 0) -> list[Question]:
    """(question, answer) of generated letter tasks, none of them a question of a validation set."""
    found = []
    for number in range(rows):
        level = levels[(number // len(tasks)) % len(levels)]
        example = sample_example(tasks[number % len(tasks)], f"{seed}/{number}", level, split="train")
        found.append((example.instruction, example.answer))
    return found


def write_rows(path: Path, rows: list[Question]) -> Path:
    """A messages JSONL of (question, answer)."""
    turns = (
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in rows
    )
    path.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns), encoding="utf-8")
    return path


def write_tasks(path: Path, levels: tuple[int, ...], rows: int = 80) -> Path:
    """A messages JSONL of every letter task."""
    return write_rows(path, task_rows(LETTER_TASKS, levels, rows))


def attempt(run: RunDir, number: int = 1) -> int:
    """One attempt in this process, without a host; the worker's exit code."""
    before = signal.getsignal(signal.SIGINT)
    try:
        return worker.main([str(run.path), "--run", run.id, "--attempt", str(number)])
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def hosted(workspace: Workspace) -> Iterator[Host]:
    """A real host with the environment that its workers are to inherit: one thread, our sources."""
    before = dict(os.environ)
    os.environ.update(WORKER_ENVIRONMENT)
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        with hosting(workspace) as host:
            yield host
    finally:
        os.environ.clear()
        os.environ.update(before)


def start(host: Host, run: RunDir) -> None:
    """Start a worker subprocess."""
    host.call("start", run=run.id)


def finish(host: Host, run: RunDir, seconds: float = WAIT_SEC) -> dict[str, Any]:
    """Wait for the run's worker to end; the run as the host then shows it."""
    wait_for(lambda: not host.call("alive", run=run.id)["alive"], f"the worker of {run.id} to end", seconds)
    return host.call("show", run=run.id)


def run_hosted(workspace: Workspace, value: dict[str, Any]) -> tuple[RunDir, dict[str, Any]]:
    """Create a run and see it through with the real subprocess: its directory and its final row."""
    run = create(workspace, value)
    with hosted(workspace) as host:
        start(host, run)
        return run, finish(host, run)


def wait_for(ready: Callable[[], Any], what: str, seconds: float = WAIT_SEC) -> Any:
    """Poll until `ready()` is true; its value."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = ready()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds:g} s for {what}")


def command_line(workspace: Workspace, *arguments: str) -> subprocess.Popen[bytes]:
    """`scaler ...` as a process of its own, offline and on one thread."""
    environment = {**os.environ, **WORKER_ENVIRONMENT, "COLUMNS": "120"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-m", "scaler_wizard.cli.main", *arguments, "--workspace", str(workspace.root)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
    )  # fmt: skip


def worker_pid(run: RunDir) -> int:
    """Process id of the living worker: the one whose command line names this run directory."""

    def find() -> int | None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"scaler_wizard.recipes.worker" in words and str(run.path).encode() in words:
                return int(path.parent.name)
        return None

    return int(wait_for(find, f"a worker of {run.id}"))


def kill(pid: int) -> None:
    """SIGKILL, as a power cut or the kernel's memory killer would."""
    os.kill(pid, signal.SIGKILL)


def events(run: RunDir, kind: str | None = None, from_seq: int = 0) -> list[Any]:
    """The run's typed events, of one kind or all."""
    return [event for event in run.read_events(from_seq) if kind in (None, event.type)]


def phase_metrics(run: RunDir) -> dict[str, Metrics]:
    """What every committed phase measured."""
    return {item.phase: dict(item.metrics) for item in CheckpointStore(run).chain()}


def digests(directory: Path, suffix: str = "") -> dict[str, str]:
    """SHA-256 of every file below a directory whose name ends so."""
    files = sorted(path for path in directory.rglob(f"*{suffix}") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def models(workspace: Workspace) -> list[Model]:
    """The workspace's registry."""
    with Database.open(workspace.database) as database, database.session() as connection:
        return list(registry.list_models(connection))


def save_tiny(directory: Path, kind: str, *, context: int = 128, seed: int = 0) -> Path:
    """A random model of an architecture with the embedded model's tokenizer, as a model directory.

    That tokenizer reads English in words, so that documents, needles and questions fit 128 tokens.
    """
    tokenizer = load_model(resolve_model("seedling"), dtype=torch.float32, device="cpu").tokenizer
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    changes = {"original_max_position_embeddings": context} if kind == "phi3" else {}
    model = tiny_model(
        kind, seed=seed, vocab_size=len(tokenizer), max_position_embeddings=context,
        initializer_range=0.1, **special, **changes,
    )  # fmt: skip
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_messages(path: Path, rows: int = 60) -> Path:
    """A messages JSONL of checkable questions."""
    lines = []
    for number in range(rows):
        a, b = number % 7, number % 5
        turns = [
            {"role": "user", "content": f"What is {a} plus {b}?"},
            {"role": "assistant", "content": str(a + b)},
        ]
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_texts(path: Path, texts: int = 80, seed: int = 3) -> Path:
    """Plain texts of about 700 tokens each, one a line, to measure the context on."""
    rng = random.Random(seed)
    lines = (" ".join(filler_line(rng).strip() for _ in range(60)) for _ in range(texts))
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def bootstrap_value(**changes: Any) -> dict[str, Any]:
    """A bootstrap of seconds in which the seedling really learns two tasks: 10 s of CPU time for two stages.

    `changes` are merged into the sections, and into the stages within them.
    """
    stage = {"prompts": 120, "steps": 40, "share": 0.02, "replay": 0.3}
    value: dict[str, Any] = {
        "recipe": "bootstrap",
        "name": "tiny",
        "model": {"base_model": "seedling", "runtime": "cpu"},
        "world": {"types": ["copy", "double"], "levels": [1, 2]},
        "stages": {"last": 2, "explicit": stage, "implicit": stage},
        "sampling": {
            "samples": 1, "base_texts": 24, "max_new_tokens": 16, "confidence": 0.3, "agreement": 0.5,
        },
        "evaluation": {"questions": 40, "least": 20},
        "scaling": {"lora": {"rank": 16, "alpha": 32}},
        "training": {"batch_tokens": 512, "micro_batch_tokens": 512, "learning_rate": 0.005},
        "safety": {"gates": {"ask": "auto_approve"}, "checkpoint_every_sec": 0.2},
    }  # fmt: skip
    for section, fields in changes.items():
        before = value.get(section)
        if not isinstance(fields, dict) or not isinstance(before, dict):
            value[section] = fields
            continue
        for key, field in fields.items():
            inner = before.get(key)
            before[key] = {**inner, **field} if isinstance(inner, dict) and isinstance(field, dict) else field
    return value
