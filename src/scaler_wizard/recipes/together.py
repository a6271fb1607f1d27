"""One training by several processes of one machine: phase P1 of a signed `grow` job, and nothing else.

    torchrun --standalone --nproc-per-node 2 -m scaler_wizard.recipes.together job.yaml --out DIR

The contract, the plan's memory check, the circuit breaker and atomic checkpoints are those of every run;
gates, probes, longer contexts and export belong to `scaler run`, which is one process. Started again with the
same DIR, it goes on after its newest checkpoint. Rank 0 alone writes files and prints one JSON object a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from scaler_wizard.data.sample import sample_data
from scaler_wizard.errors import BreakerTrippedError, ProcessGroupError, ScalerError, SpecError
from scaler_wizard.models.adapters import save_adapter
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.hardware import probe_hardware
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import Plan, make_plan
from scaler_wizard.recipes.grow_session import GrowSession
from scaler_wizard.recipes.session import FULL_WEIGHTS, ModelSession, Training
from scaler_wizard.runs.context import perplexity
from scaler_wizard.safety.breaker import Breaker
from scaler_wizard.safety.contract import check_job, job_hash
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.specs.yaml_io import read_yaml
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.durable import write_atomic
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.training.distributed import (
    DEFAULT_TIMEOUT_SEC,
    Group,
    checksum,
    connected,
    is_lost_rank,
)
from scaler_wizard.training.forward import make_objective
from scaler_wizard.training.launch import read_launch
from scaler_wizard.training.loop import StepResult, train
from scaler_wizard.training.sharded import load_shared_state, save_shared_state, shard, whole_weights

PHASE = "P1"
PLAN_FILE = "plan.json"


def main(argv: list[str] | None = None) -> int:
    """Train as one of torchrun's processes; the exit code is 0 or the error's."""
    parser = argparse.ArgumentParser(prog="scaler_wizard.recipes.together", description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parallel", choices=("replicated", "sharded"), default="replicated")
    parser.add_argument("--until", type=int, help="stop after this step; the schedule stays the plan's")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--timeout-sec", type=float, default=DEFAULT_TIMEOUT_SEC)
    parser.add_argument("--allow-network", action="store_true")
    options = parser.parse_args(argv)
    try:
        launch = read_launch(os.environ)
        if launch is None:
            raise ProcessGroupError(
                "no other process was started",
                "torchrun's environment",
                "start with: torchrun --standalone --nproc-per-node 2 -m scaler_wizard.recipes.together ...",
            )
        job_path, out = options.job.resolve(), options.out.resolve()
        job = GrowJob.parse(read_yaml(job_path))
        check_job(job)
        # Paths in a job file are relative to it.
        os.chdir(job_path.parent)
        device = "cuda" if torch.cuda.is_available() and job.model.runtime != "cpu" else "cpu"
        with connected(
            launch, device, allow_network=options.allow_network, timeout_sec=options.timeout_sec
        ) as group:
            _train(job, out, group, options)
    except ScalerError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        print(f"ProcessGroupError: another process was lost: {error}", file=sys.stderr, flush=True)
        return ProcessGroupError.exit_code
    return 0


def _train(job: GrowJob, out: Path, group: Group, options: argparse.Namespace) -> None:
    plan = _shared_plan(job, out, group)
    if plan.target_context != plan.base_context and group.rank == 0:
        print(f"only {PHASE} is trained here; the longer contexts of the plan need `scaler run`", flush=True)
    session = GrowSession(job, plan, plan.base_context)
    if options.parallel == "sharded":
        shard(session.adapted, group)
    phase = plan.phase(PHASE)
    replay = [] if session.dataset.row_format == "text" else session.text_rows(phase.context)
    training = session.training(phase, session.rows_at(phase.context).rows, replay, phase.steps)
    store = CheckpointStore(RunDir(out))
    _go_on(group, store, training)
    group.check_same("weights", checksum(training.state))
    first = training.batches.step(training.state.step)
    group.check_same("rows", [training.settings.total_steps, first.n_tokens, first.n_labels])
    breaker = Breaker(job.safety.circuit_breaker)

    def guard(result: StepResult) -> bool:
        verdict = breaker.register(
            result.step, perplexity(result.loss), loss=result.loss, grad_norm=result.grad_norm
        )
        return verdict.action != "stop"

    last = min(options.until or training.settings.total_steps, training.settings.total_steps)
    if training.state.step < last:
        for result in train(
            session.adapted, training.batches, make_objective("sft"), training.settings,
            guard=guard, state=training.state, device=group.device, ranks=group,
        ):  # fmt: skip
            if group.rank == 0:
                print(json.dumps(dataclasses.asdict(result)), flush=True)
            if result.step == last or result.step % options.save_every == 0:
                _save(group, store, training)
            if result.step == last:
                break
    if training.state.step < last:
        todo = "lower the learning rate or look at the data; the last checkpoint is whole"
        raise BreakerTrippedError(breaker.tripped, training.state.step + 1, todo)
    _write_result(session, training, out, group)


def _shared_plan(job: GrowJob, out: Path, group: Group) -> Plan:
    """Rank 0's plan for one process's share of the machine: free memory read twice would give two plans."""
    if group.rank == 0:
        path = resolve_model(job.model.base_model)
        hardware = probe_hardware(Path.cwd())
        hardware = dataclasses.replace(hardware, ram_available=hardware.ram_available // group.world)
        sample = sample_data(job, Path(job.model.tokenizer) if job.model.tokenizer else path)
        out.mkdir(parents=True, exist_ok=True)
        if not (out / PLAN_FILE).exists():
            facts = read_facts(path, allow_remote_code=job.model.trust_remote_code)
            plan = make_plan(job, hardware, facts, data=sample.summary)
            stored = {"job": job_hash(job), "plan": plan.as_dict()}
            write_atomic(out / PLAN_FILE, json.dumps(stored, indent=1) + "\n")
    group.barrier("waiting for the plan")
    try:
        stored = json.loads((out / PLAN_FILE).read_text(encoding="utf-8"))
        planned, plan = stored["job"], Plan.from_dict(stored["plan"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{out / PLAN_FILE} cannot be read ({error})", "the plan of this job") from None
    if planned != job_hash(job):
        raise SpecError(
            f"{out} holds the training of another job, or of this one before it was changed",
            "a directory of its own for each job",
            "name another --out",
        )
    return plan


def _go_on(group: Group, store: CheckpointStore, training: Training) -> None:
    """Take up the newest whole checkpoint; rank 0 looks first, because looking may repair."""
    if group.rank == 0:
        store.newest_verified()
    group.barrier("looking for a checkpoint")
    found = store.newest_verified().checkpoint
    if found is not None:
        load_shared_state(group, training.state, found.path)


def _save(group: Group, store: CheckpointStore, training: Training) -> None:
    """Commit a step checkpoint of the whole state."""
    if group.rank != 0:
        save_shared_state(group, training.state, store.directory)
        return
    with store.stage(PHASE) as staging:
        save_shared_state(group, training.state, staging.path)
        staging.commit(step=training.state.step, kind="step")
    store.prune()


def _write_result(session: ModelSession, training: Training, out: Path, group: Group) -> None:
    """The adapter, or all weights where they were trained, as safetensors."""
    if session.plan.strategy == "full":
        weights = whole_weights(training.state)
        if group.rank == 0:
            tensors = {name: value.to("cpu").contiguous() for name, value in weights.items()}
            save_file(tensors, out / FULL_WEIGHTS)
    elif group.rank == 0:
        save_adapter(session.adapted, out / "adapter")
    group.barrier("writing the result")


if __name__ == "__main__":
    sys.exit(main())
