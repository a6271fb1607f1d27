"""The story of `scaler demo continual`: a real daemon, three files, and everything that may go wrong once.

Acts as a person and as bad luck do: drops files, pauses and resumes by the same requests as any command, and
kills processes with SIGKILL. All that it tells at the end is read from the workspace.
"""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, TypeVar

from rich.console import Console
from rich.status import Status

from scaler_wizard.cli.options import user_name
from scaler_wizard.data.generate import generated_rows, parse_levels
from scaler_wizard.errors import RunError, RunNotFoundError, ScalerError, SpecError, WorkerDiedError
from scaler_wizard.jobs.client import Client
from scaler_wizard.jobs.detach import start_detached, wait_until_free
from scaler_wizard.jobs.sweep import find_processes
from scaler_wizard.report.history import Told, tell_inbox, tell_run
from scaler_wizard.safety.contract import DEFAULT_ROLLBACK_PLAN, default_scope, sign
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.specs.events import Event
from scaler_wizard.specs.yaml_io import dump_yaml, parse_yaml
from scaler_wizard.store.config import config_path
from scaler_wizard.store.durable import write_atomic
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

LESSONS = {"1-easy.jsonl": ("easy", 5200), "2-medium.jsonl": ("medium", 2600), "3-hard.jsonl": ("hard", 2200)}
"""File -> levels and rows: about 120 steps each."""
BROKEN, COPY = "broken.jsonl", "copy-of-1.jsonl"
PATIENCE_SEC = 300.0
POLL_SEC = 0.2
T = TypeVar("T")


@dataclass
class Story:
    """The workspace, and what was done to it."""

    space: Workspace
    console: Console
    seed: int
    started: float = field(default_factory=time.time)
    acts: list[Told] = field(default_factory=list)

    def tell(self, subject: str, words: str) -> None:
        """Say what is done, and keep it for the log."""
        self.acts.append(Told(time.time(), subject, words))
        clock = time.time() - self.started
        self.console.print(
            f"{clock:5.0f} s  {subject}: {words}", highlight=False, markup=False, soft_wrap=True
        )

    # What a person does

    def prepare(self) -> None:
        """Config, signature, daemon."""
        if config_path(self.space).exists():
            raise SpecError(
                f"{self.space.root} has a config already", "a fresh workspace for the demo",
                "name a new folder with --workspace",
            )  # fmt: skip
        value = parse_yaml(_asset("demo_continual.yaml"), "demo_continual.yaml")
        value["training"]["seed"] = self.seed
        config = ContinualConfig.parse(value, "demo_continual.yaml")
        signed = sign(
            config, f"{user_name()} (demo)", default_scope(config), DEFAULT_ROLLBACK_PLAN,
            datetime.now(UTC), str(uuid.uuid4()),
        )  # fmt: skip
        assert signed.contract is not None
        contract = {"contract": signed.contract.model_dump(mode="json", by_alias=True)}
        write_atomic(config_path(self.space), dump_yaml(value | contract))
        self.tell("contract", "this demo signs its own standing contract, once for all files")
        self.start_daemon("started")

    def start_daemon(self, word: str) -> int:
        """A daemon process of its own; its process id."""
        pid = start_detached(self.space)
        self.tell("daemon", f"{word} as process {pid}")
        return pid

    def drop(self, name: str) -> None:
        """Put a lesson into the inbox, with two lines that cannot be read in the second one."""
        levels, count = LESSONS[name]
        tasks = parse_yaml(_asset("demo_continual.yaml"), "demo_continual.yaml")["validation"]["tasks"]
        rows = generated_rows(tasks, parse_levels(levels), count, self.seed)
        lines = [json.dumps(row.as_dict()) for row in rows]
        if name.startswith("2"):
            lines += ['{"messages": [{"role": "user", "content": "cut in the mid', '{"messages": []}']
        write_atomic(self.space.inbox / name, "\n".join(lines) + "\n")
        self.tell(name, f"dropped into the inbox: {count:,} rows, {levels} letter tasks")

    def drop_bad_company(self) -> None:
        """A file of garbage, and a second copy of the first lesson."""
        (self.space.inbox / BROKEN).write_text("not JSON\n{\n", encoding="utf-8")
        self.tell(BROKEN, "dropped: no line of it can be read")
        first = self.space.inbox / next(iter(LESSONS))
        (self.space.inbox / COPY).write_bytes(first.read_bytes())
        self.tell(COPY, f"dropped: the same bytes as {first.name}")

    def pause_and_resume(self, name: str) -> None:
        """In the middle of its training."""
        run = self.run_of(name)
        step = self.at_step(run, 15)
        self.ask(run, "pause", "the demo wants to show that nothing is lost")
        self.until(f"{name} to pause", lambda: self.status(run) == "paused")
        last = _last_step(run)
        self.tell(name, f"asked to pause at step {step}; paused after step {last}")
        self.ask(run, "resume", "enough of a break")
        going = self.until(f"{name} to go on", lambda: _first_step_after(run, last))
        self.tell(name, f"resumed: the next batch was step {going}")

    def kill_worker(self, name: str) -> None:
        """SIGKILL, as the kernel's memory killer would."""
        run = self.run_of(name)
        step = self.at_step(run, 12)
        for process in find_processes(run.id, self.space.root):
            os.kill(process.pid, signal.SIGKILL)
        self.tell(name, f"its worker was killed with -9 at step {step}")
        self.until(f"{name} to go on", lambda: _attempts(run) > 1 and _last_step(run) > 0)

    def kill_daemon(self, name: str) -> None:
        """SIGKILL of the daemon while a worker is at work; the next daemon takes the worker over."""
        run = self.run_of(name)
        step = self.at_step(run, 10)
        with Client(self.space) as client:
            pid = int(client.call("ping")["pid"])
        os.kill(pid, signal.SIGKILL)
        self.tell("daemon", f"process {pid} was killed with -9 while {name} was at step {step}")
        if not wait_until_free(self.space, 10):
            raise RunError("the killed daemon's lock was not given up", "", "run the demo again")
        self.start_daemon("started again")

    def finish(self, name: str) -> None:
        """Wait until a file is learned."""
        run = self.run_of(name)
        status = self.until(f"{name} to be learned", lambda: _ended(self.status(run)))
        result = run.result() or {}
        if status != "completed" or "version" not in result:
            raise WorkerDiedError(f"{name} is {status}", "completed", f"see {run.worker_log}")
        accuracy = result["version"]["metrics"]["accuracy"]
        changes = (
            f"{key} {accuracy[key]['before']['value']:.2f} -> {accuracy[key]['after']['value']:.2f}"
            for key in ("easy", "medium", "hard")
        )
        fate = "promoted" if result["version"]["promote"] else "held"
        self.tell(name, f"learned; {', '.join(changes)}; its version is {fate}")

    def stop(self) -> None:
        """End the daemon."""
        with Client(self.space) as client:
            if not client.hosted:
                return
            client.call("daemon_stop", now=False, by=user_name(), reason="the demo is over")
        wait_until_free(self.space, 30)
        self.tell("daemon", "stopped")

    # What is looked at

    def ask(self, run: RunDir, action: str, reason: str) -> None:
        """One request of a person."""
        with Client(self.space) as client:
            client.call(
                "command", run=run.id, action=action, by=user_name(), reason=reason,
                decision_id=uuid.uuid4().hex,
            )  # fmt: skip

    def status(self, run: RunDir) -> str:
        """As any command sees it."""
        with Client(self.space) as client:
            return str(client.call("show", run=run.id)["status"])

    def run_of(self, name: str) -> RunDir:
        """The run that learns a file."""

        def find() -> RunDir | None:
            with Client(self.space) as client:
                try:
                    return self.space.run_dir(str(client.call("find_run", name=name)["run"]))
                except RunNotFoundError:
                    return None

        return self.until(f"{name} to be taken from the inbox", find)

    def at_step(self, run: RunDir, step: int) -> int:
        """Wait until a training has come so far; where it then is."""
        self.until(f"step {step}", lambda: _last_step(run) >= step)
        return _last_step(run)

    def until(self, what: str, ready: Callable[[], T | None]) -> T:
        """Poll until there is something; shows how far the work has come meanwhile."""
        limit = time.monotonic() + PATIENCE_SEC
        with Status(f"waiting for {what}", console=self.console) as shown:
            while time.monotonic() < limit:
                try:
                    found = ready()
                    shown.update(self._picture(what))
                except ScalerError:
                    found = None  # the daemon is just being replaced
                if found:
                    return found
                time.sleep(POLL_SEC)
        raise RunError(f"waited {PATIENCE_SEC:.0f} s for {what}", "", f"see {self.space.logs}")

    def _picture(self, what: str) -> str:
        with Client(self.space) as client:
            current = client.call("status")["current"] if client.hosted else None
        if not current:
            return f"waiting for {what}"
        left = "" if current["eta_sec"] is None else f", {current['eta_sec']:.0f} s left"
        return f"waiting for {what}: {current['activity']} {current['done']}/{current['total']}{left}"

    # What is told at the end

    def report(self) -> dict[str, Any]:
        """Versions, accuracy before and after each file, what was set aside, and the whole log in words."""
        with Client(self.space) as client:
            status = client.call("status")
            shown = {run["run"]: client.call("show", run=run["run"]) for run in client.call("runs")["runs"]}
        told = [*self.acts, *tell_inbox(status["inbox"])]
        for run in shown.values():
            told += tell_run(str(mapping_name(run["job"]) or run["run"]), run["history"])
        results = [run.result() for run in map(self.run_of, LESSONS)]
        lessons = [_lesson(name, result) for name, result in zip(LESSONS, results, strict=True) if result]
        return {
            "demo": "continual",
            "workspace": str(self.space.root),
            "seed": self.seed,
            "seconds": round(time.time() - self.started, 1),
            "status": "completed",
            "files": lessons,
            "rose": _rose(lessons),
            "versions": status["versions"],
            "refused": [
                {"file": mapping_name(run["job"]), "status": run["status"], "error": run["error"]}
                for run in shown.values()
                if run["status"] == "failed"
            ],
            "duplicates": [file["name"] for file in status["inbox"] if file["outcome"] == "duplicate"],
            "quarantined": [
                {"file": lesson["file"], "line": line, "reason": reason}
                for lesson in lessons
                for line, reason in lesson["set_aside"]
            ],
            "events": [asdict(item) for item in sorted(told, key=lambda item: item.time)],
        }


def play(space: Workspace, console: Console, seed: int) -> dict[str, Any]:
    """The whole story; the report."""
    story = Story(space, console, seed)
    easy, medium, hard = LESSONS
    try:
        story.prepare()
        story.drop(easy)
        story.pause_and_resume(easy)
        story.drop_bad_company()
        story.drop(medium)
        story.finish(easy)
        story.kill_worker(medium)
        story.drop(hard)
        story.finish(medium)
        story.kill_daemon(hard)
        story.finish(hard)
    finally:
        story.stop()
    return story.report()


def mapping_name(job: dict[str, Any]) -> str:
    """The file that a job learns from; "" for other jobs."""
    return str((job.get("file") or {}).get("name") or "")


def _asset(name: str) -> str:
    return files("scaler_wizard.assets").joinpath(name).read_text(encoding="utf-8")


def _lesson(name: str, result: dict[str, Any]) -> dict[str, Any]:
    metrics = result["version"]["metrics"]
    accuracy = metrics["accuracy"]
    earlier = accuracy.get("held-out rows of earlier files")
    return {
        "file": name,
        "run": result["run"],
        "promoted": result["version"]["promote"],
        "reasons": result["version"]["reasons"],
        "validation": {key: accuracy[key] for key in ("easy", "medium", "hard")},
        "forgetting": earlier,
        "gap": metrics["gap"],
        "steps": metrics["steps"],
        "tokens_per_second": metrics["tokens_per_second"],
        "set_aside": result["file"]["reasons"],
        "warnings": metrics["warnings"],
    }


def _rose(lessons: list[dict[str, Any]]) -> bool:
    """Whether each file made its own difficulty better, and all together every difficulty."""
    own = all(
        lesson["validation"][levels]["after"]["value"] > lesson["validation"][levels]["before"]["value"]
        for lesson, (levels, _) in zip(lessons, LESSONS.values(), strict=True)
    )
    first, last = lessons[0]["validation"], lessons[-1]["validation"]
    return own and all(last[key]["after"]["value"] > first[key]["before"]["value"] for key in first)


def _steps(run: RunDir) -> Iterator[Event]:
    return (event for event in run.read_events() if event.type in ("step", "run_started"))


def _last_step(run: RunDir) -> int:
    """The newest step of the newest attempt; 0 before its first."""
    last = 0
    for event in _steps(run):
        last = event.step if event.type == "step" else 0
    return last


def _first_step_after(run: RunDir, paused: int) -> int:
    """The first step that an attempt after the first one took; 0 while there is none."""
    attempt, last = 0, 0
    for event in _steps(run):
        attempt += event.type == "run_started"
        if event.type == "step" and attempt > 1:
            return event.step
        last = event.step if event.type == "step" else last
    assert last >= paused
    return 0


def _attempts(run: RunDir) -> int:
    return sum(event.type == "run_started" for event in _steps(run))


def _ended(status: str) -> str | None:
    return status if status in ("completed", "failed", "stopped", "skipped") else None
