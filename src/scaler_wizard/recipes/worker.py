"""The worker process: one attempt of one run. `python -m scaler_wizard.recipes.worker RUN_DIR ...`.

Its death never takes the host along. It inherits the run directory's lock from the host and holds it
until its last descendant dies, reports over the host's socket, and leaves an fsynced `exit_status.json`;
leaving without one means "interrupted", whatever the exit code says.
"""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
import time
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from scaler_wizard.errors import ScalerError
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.registry import RECIPES
from scaler_wizard.report.cockpit import CockpitState
from scaler_wizard.runs.engine import Engine, Outcome, ended_by
from scaler_wizard.runs.link import HostLink
from scaler_wizard.runs.memory import device_memory_limit
from scaler_wizard.runs.telemetry import Telemetry
from scaler_wizard.safety.contract import check_job
from scaler_wizard.specs.job import parse_job
from scaler_wizard.store.durable import is_disk_full
from scaler_wizard.store.rundir import ExitStatus, RunDir
from scaler_wizard.training.memory import memory_bytes


def main(argv: list[str] | None = None) -> int:
    """Execute one attempt; the exit code is 0 for completed and paused, else the error's."""
    parser = argparse.ArgumentParser(prog="scaler-worker")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--run", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--socket", type=Path, default=None)
    options = parser.parse_args(argv)
    faulthandler.enable()
    # Its bars would fill worker.log; ours are events.
    transformers_logging.disable_progress_bar()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # A terminal's Ctrl-C goes to the whole process group; the host turns it into a pause.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_dir = RunDir(options.run_dir)
    link = HostLink(options.socket, options.run, options.attempt)
    outcome = _attempt(run_dir, options.run, options.attempt, link)
    return 0 if outcome.status in ("completed", "paused") else 1


def _attempt(run_dir: RunDir, run: str, attempt: int, link: HostLink) -> Outcome:
    try:
        outcome = _execute(run_dir, run, attempt, link)
    except ScalerError as error:
        outcome = ended_by(error)
    except OSError as error:
        if not is_disk_full(error):
            raise
        outcome = Outcome("paused", f"the disk is full ({error.filename})", "free some space, then resume")
    run_dir.write_exit_status(
        ExitStatus(
            attempt,
            outcome.status,
            outcome.reason,
            outcome.advice,
            rollback_to=outcome.rollback_to,
            time=time.time(),
        )
    )
    link.request("ended", status=outcome.status, reason=outcome.reason)
    link.close()
    return outcome


def _execute(run_dir: RunDir, run: str, attempt: int, link: HostLink) -> Outcome:
    job = parse_job(run_dir.job())
    signed = check_job(job)
    plan = Plan.from_dict(run_dir.plan() or {})
    device = torch.device(plan.device)
    limit = device_memory_limit(device)
    state = CockpitState(
        run_dir.identity().uuid,
        total_memory=limit.total_bytes,
        response_window_sec=job.safety.gates.response_window_sec,
        audit={"contract": signed.hash},
    )
    telemetry = Telemetry(run_dir, state)
    try:
        recipe = RECIPES[job.recipe](job, plan, run_dir)
        engine = Engine(
            run, attempt, run_dir, recipe, link, job.safety, telemetry, limit, lambda: memory_bytes(device)
        )
        return engine.execute()
    finally:
        telemetry.close()


if __name__ == "__main__":
    sys.exit(main())
