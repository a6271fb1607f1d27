"""From a settled file in the inbox to a queued run: look, copy, hash, check. `inbox` decides what to do.

Runs in a thread of its own: a 10 GB file takes minutes, in which the host answers everybody else. Rows are
written through the host's operations only; the person's file is opened for reading only.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaler_wizard.errors import DataError, LimitError, ModelError, ScalerError, SpecError
from scaler_wizard.jobs import inbox
from scaler_wizard.jobs.checking import Checked, check_file, plan_file
from scaler_wizard.jobs.inbox import Entry, Look, Noticed, Take
from scaler_wizard.jobs.inbox_io import UnsettledError, copy_in, look_at
from scaler_wizard.jobs.sidecar import is_lonely_sidecar, read_sidecar
from scaler_wizard.specs.continual import ContinualConfig, ContinualJob, FileSection
from scaler_wizard.store.durable import OS, is_disk_full, sha256_file
from scaler_wizard.store.queue import dedup_key
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

GB = 10**9
Call = Callable[..., dict[str, Any]]
log = logging.getLogger(__name__)


class _NoRoomError(Exception):
    """Too little free space for the copy: later again, and the person is told."""


class Intake:
    """Takes files of one inbox.

    Args:
        call: the host's operations.
        config: the newest config.
        problem: why nothing can be queued now (a stale signature), or None.
        stop: whether the daemon is ending; a copy is then given up.
    """

    def __init__(
        self, workspace: Workspace, call: Call, config: Callable[[], ContinualConfig],
        problem: Callable[[], str | None] = lambda: None, stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.workspace = workspace
        self.call = call
        self.config = config
        self.problem = problem
        self.stop = stop
        self.staging = workspace.root / ".incoming"
        self.waiting: Mapping[str, str] = {}
        """Files that could not be taken at the last look -> why; replaced at each look."""
        self._noticed: Mapping[str, Noticed] = {}
        self._known = set(call("inbox_known")["keys"])
        self._unqueued: dict[str, Path] = {}
        """Key of the content -> run directory of a copy that a killed daemon made and did not queue."""
        # Copies that a killed daemon left unfinished; their originals are still in the inbox.
        OS.remove_tree(self.staging)

    def tidy(self) -> None:
        """Remove copies that a killed daemon made and did not queue, where their content is queued by now.

        Where it is not, the original may be gone: the copy stays, and the log says where it is.
        """
        known = set(self.call("inbox_known")["runs"])
        for run_dir in self.workspace.run_dirs():
            copies = sorted((run_dir.path / "input").glob("*"))
            if run_dir.id in known or not copies:
                continue
            key = dedup_key(sha256_file(copies[0]), self.config().lineage.model_name)
            if self.call("inbox_same", dedup_key=key)["run"] is not None:
                OS.remove_tree(run_dir.path)
            else:
                self._unqueued[key] = run_dir.path
                log.warning("%s was copied and never queued; drop it again if it is needed", copies[0])

    def look(self) -> Look:
        """One look: refuse and take what is due; the decision that was carried out."""
        config, problem = self.config(), self.problem()
        look = inbox.decide(
            look_at(self.workspace.inbox), self._noticed, self._known, time.monotonic(),
            config.queue.settle_seconds,
        )  # fmt: skip
        noticed, waiting = dict(look.noticed), {}
        for refused in look.refuse:
            self._seen(refused.entry, "refused", note=f"{refused.reason}; {refused.advice}")
        for take in look.take:
            if self.stop():
                break
            if problem is not None:
                waiting[take.entry.shown] = problem
                continue
            try:
                self._take(take, config)
            except UnsettledError:
                noticed.pop(take.entry.path, None)
            except (_NoRoomError, OSError, ScalerError) as error:
                waiting[take.entry.shown] = _why(error)
                log.warning("%s cannot be taken: %s", take.entry.shown, waiting[take.entry.shown])
        self._noticed, self.waiting = noticed, waiting
        return look

    def _take(self, take: Take, config: ContinualConfig) -> None:
        entry, lineage = take.entry, config.lineage.model_name
        if is_lonely_sidecar(self.workspace.inbox, entry):
            self._seen(entry, "refused", note="it describes a file that is not beside it; drop them together")
            return
        _check_room(self.workspace.root, entry, config)
        staged = self.staging / uuid.uuid4().hex / inbox.file_name(entry.path)
        staged.parent.mkdir(mode=0o700, parents=True)
        try:
            sha256 = copy_in(self.workspace.inbox, entry, staged, self.stop)
            key = dedup_key(sha256, lineage)
            same = self.call("inbox_same", dedup_key=key)["run"]
            if same is not None:
                self._seen(entry, "duplicate", same, sha256, f"the same content as {same}")
                return
            self._queue(take, config, staged, sha256, key)
            if key in self._unqueued:
                OS.remove_tree(self._unqueued.pop(key))  # taken again from its original
        finally:
            OS.remove_tree(staged.parent)

    def _queue(self, take: Take, config: ContinualConfig, staged: Path, sha256: str, key: str) -> None:
        """Put the copy into a run directory and queue it, or enter it as failed with the reason."""
        entry, sidecar = take.entry, read_sidecar(self.workspace.inbox, take.sidecar)
        run_dir = self.workspace.new_run_dir(inbox.run_name(entry.path))
        place = run_dir.path / "input" / staged.name
        OS.mkdir(place.parent)
        OS.rename(staged, place)
        OS.fsync(place.parent)
        OS.fsync(run_dir.path)
        file = FileSection(path=str(place), name=entry.shown, sha256=sha256, description=sidecar.description)
        job = config.job(inbox.run_name(entry.path), file)
        checked, plan, failed = _prepare(job, run_dir, self.workspace, self._stop_check)
        answer = self.call(
            "enqueue", run=run_dir.id, job=job.model_dump(mode="json", by_alias=True), plan=plan,
            dedup_key=key, lineage=config.lineage.model_name, priority=sidecar.priority, failed=failed,
        )  # fmt: skip
        assert not answer["duplicate"], "only this thread queues files"
        outcome = "queued" if failed is None else "failed"
        self._seen(entry, outcome, run_dir.id, sha256, sidecar.problem, asdict(checked))

    def _stop_check(self, done: int, total: int) -> None:
        if self.stop():
            raise UnsettledError

    def _seen(
        self, entry: Entry, outcome: str, run: str | None = None, sha256: str | None = None, note: str = "",
        checked: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.call(
            "inbox_seen", key=entry.key, name=entry.shown, outcome=outcome, of_run=run, sha256=sha256,
            note=note, checked=checked,
        )  # fmt: skip
        self._known.add(entry.key)
        log.info("inbox: %s: %s %s %s", entry.shown, outcome, run or "", note)


def _prepare(
    job: ContinualJob, run_dir: RunDir, workspace: Workspace, stop: Callable[[int, int], None]
) -> tuple[Checked, dict[str, Any] | None, dict[str, str] | None]:
    """What was found in the file, the run's plan, and why the run has failed already: {error, advice}."""
    checked = Checked(0, 0, "")
    try:
        checked = check_file(Path(job.file.path), job.data, run_dir.path / "quarantine.jsonl", stop)
        plan = plan_file(job, workspace)
    except (DataError, ModelError, LimitError, SpecError) as error:
        return checked, None, {"error": error.found, "advice": error.todo}
    return checked, plan, None


def _why(error: Exception) -> str:
    if isinstance(error, ScalerError | _NoRoomError):
        return str(error)
    return "the disk is full" if is_disk_full(error) else f"it cannot be copied ({error})"


def _check_room(root: Path, entry: Entry, config: ContinualConfig) -> None:
    free, keep = shutil.disk_usage(root).free, config.disk.refuse_below_gb * GB
    if free - entry.size < keep:
        raise _NoRoomError(
            f"needs {entry.size / GB:.1f} GB, {free / GB:.1f} GB are free and {keep / GB:.1f} GB stay free; "
            "it is taken when there is room"
        )
