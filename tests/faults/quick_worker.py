"""A worker that learns nothing and needs no torch; checkpoints, reports, export and exit status are real.

Stands in the interpreter's place (see `daemon_lives`), so that a fault test of the host can end hundreds of
daemons in a minute. What a real worker does is tested in test_exact_resume.py and by scripts/soak.py.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from scaler_wizard.runs.link import HostLink
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import ExitStatus, RunDir

PHASE_SEC = 0.1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--run", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--socket", type=Path)
    options, _ = parser.parse_known_args()
    run = RunDir(options.run_dir)
    with (run.path / "starts.txt").open("a") as file:
        file.write(f"{options.attempt} {os.getpid()}\n")
    link = HostLink(options.socket, options.run, options.attempt)
    store = CheckpointStore(run)
    store.newest_verified()
    done = {checkpoint.phase for checkpoint in store.chain()}
    for phase in ("P0", "P1", "P2"):
        if phase in done:
            continue
        link.request("phase_started", phase=phase)
        time.sleep(PHASE_SEC)
        link.request("beat", phase=phase)
        with store.stage(phase) as staging:
            (staging.path / "weights.txt").write_text(phase)
            made = staging.commit(step=1, metrics={"loss": 1.0})
        link.request("phase_done", phase=phase, checkpoint=made.name, metrics={"loss": 1.0})
    adapter = run.export / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    digest = str(run.job()["file"]["sha256"])
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_text(digest)
    run.write_result(
        {
            "run": run.id,
            "model": {"path": str(adapter), "weights_sha256": digest},
            "version": {"description": run.id, "promote": True, "reasons": [], "metrics": {}},
            "export": {"adapter": str(adapter)},
        }
    )
    run.write_exit_status(ExitStatus(options.attempt, "completed", time=time.time()))
    link.request("ended", status="completed", reason="")


main()
