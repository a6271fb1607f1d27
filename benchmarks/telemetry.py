"""What breaker, telemetry, memory limit and the host's word cost beside the training they watch.

    python benchmarks/telemetry.py [--json] [--model 115m|seedling] [--steps 3] [--threads 1]

Runs `PhaseContext.steps` around the real loop, with a real run directory and a real host on a socket, and
takes the time that is not spent inside the loop, guard included, over the seconds of a step. The model of
record is that of training.py; the seedling's steps are the shortest that anybody trains here. Checkpoints
are not part of it. The last line of `--json` is one object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from scaler_wizard.jobs.host import Host
from scaler_wizard.models.adapters import attach_lora
from scaler_wizard.models.load import load_model
from scaler_wizard.report.cockpit import CockpitState
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.link import HostLink
from scaler_wizard.runs.telemetry import Telemetry
from scaler_wizard.safety.breaker import Breaker
from scaler_wizard.safety.limits import MemoryLimit
from scaler_wizard.specs.sections import SafetySection
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.workspace import Workspace
from scaler_wizard.training.forward import make_objective
from scaler_wizard.training.loop import StepResult, train
from scaler_wizard.training.memory import memory_bytes
from training import EightRows, build_model, settings


class Silent:
    """A host with nothing to say: it answers every beat at once."""

    def reap(self) -> None:
        """No workers here."""

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """No command."""
        return {}


class Watch:
    """Seconds inside the loop, less those inside the guard that it asks."""

    def __init__(self) -> None:
        self.inside = 0.0

    def guard(self, ask: Callable[[StepResult], bool]) -> Callable[[StepResult], bool]:
        """`ask`, its time taken off."""

        def asked(result: StepResult) -> bool:
            started = time.perf_counter()
            answer = ask(result)
            self.inside -= time.perf_counter() - started
            return answer

        return asked

    def steps(self, results: Iterator[StepResult]) -> Iterator[StepResult]:
        """`results`, the time to make each added."""
        while True:
            started = time.perf_counter()
            result = next(results, None)
            self.inside += time.perf_counter() - started
            if result is None:
                return
            yield result


def build(name: str) -> tuple[Any, Any]:
    """(adapted model, batches)."""
    if name == "115m":
        return build_model("bfloat16"), EightRows()
    model = load_model("seedling", dtype=torch.float32, device="cpu").model
    return attach_lora(model, rank=16, alpha=32.0, seed=0), ShortSteps(model.config.vocab_size)


class ShortSteps:
    """2,048 tokens a step in rows of 128, as the demo trains."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def step(self, index: int) -> Any:
        """One packed micro-batch of random tokens."""
        import numpy as np

        from scaler_wizard.data.batches import Step, collate
        from scaler_wizard.data.token_rows import TokenRow

        rng = np.random.RandomState(index)
        ids = rng.randint(0, self.vocabulary, (16, 128)).astype(np.int32)
        return Step((collate(TokenRow(n, row, np.ones(128, bool)) for n, row in enumerate(ids)),))


def measure(name: str, steps: int) -> dict[str, Any]:
    """Train `steps` steps after one of warm-up and split the seconds."""
    model, batches = build(name)
    watch, totals = Watch(), []
    safety = SafetySection.parse({})
    with tempfile.TemporaryDirectory() as folder:
        run = Workspace.create(Path(folder) / "space").new_run_dir("telemetry")
        host = Host(Silent(), Path(folder) / "host.sock")  # type: ignore[arg-type]
        host.start()
        telemetry = Telemetry(run, CockpitState(run.identity().uuid, total_memory=1 << 40))
        link = HostLink(host.address, run.id, 1)
        context = PhaseContext(
            "P1", run, CheckpointStore(run), telemetry, link, Breaker(safety.circuit_breaker),
            MemoryLimit(1 << 40), lambda: memory_bytes(torch.device("cpu")),
        )  # fmt: skip
        context.start("measured")

        def begin(guard: Callable[[StepResult], bool]) -> Iterator[StepResult]:
            return watch.steps(
                train(model, batches, make_objective("sft"), settings(), guard=watch.guard(guard))
            )

        started = time.perf_counter()
        for result in context.steps(begin, lambda directory: None):
            totals.append((time.perf_counter() - started, watch.inside))
            if result.step > steps:
                break
        telemetry.close()
        link.close()
        host.close()
    (first, first_inside), (last, last_inside) = totals[0], totals[-1]
    seconds, inside = (last - first) / steps, (last_inside - first_inside) / steps
    return {
        "model": name,
        "steps": steps,
        "seconds_per_step": seconds,
        "watching_seconds_per_step": seconds - inside,
        "share": (seconds - inside) / seconds,
        "goal": 0.01,
    }


def main() -> None:
    """Measure one model and print it."""
    parser = argparse.ArgumentParser(description="what telemetry, breaker and control cost a step")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", choices=("115m", "seedling"), default="115m")
    parser.add_argument("--steps", type=int, default=3, help="counted steps, after one of warm-up")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = measure(arguments.model, arguments.steps)
    print(
        f"{found['seconds_per_step'] * 1e3:.1f} ms a step, {found['watching_seconds_per_step'] * 1e3:.2f} ms "
        f"of it for breaker, telemetry and control: {found['share']:.2%} (goal: under {found['goal']:.0%})"
    )
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
