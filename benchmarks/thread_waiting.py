"""How long a step of the embedded model takes when its threads spin or sleep while they wait for each other.

Each way is timed in processes of its own, with and without others that use every core, in turn.

    python benchmarks/thread_waiting.py [--rounds 3] [--steps 20] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.resources import files

WAYS = {"spin": {}, "sleep": {"OMP_WAIT_POLICY": "passive"}, "one thread": {"OMP_NUM_THREADS": "1"}}
BURN = "import torch; torch.set_num_threads(1); a = torch.randn(600, 600)\nwhile True: a @ a"


def child(steps: int) -> None:
    """Time training steps of the embedded model: prints wall and CPU seconds a step."""
    # Here, so that the parent stays light and the environment is set before torch reads it.
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(str(files("scaler_wizard.assets") / "seedling"))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.randint(0, 1000, (8, 128), generator=torch.Generator().manual_seed(0))
    wall, cpu = 0.0, 0.0
    for step in range(steps + 3):
        if step == 3:
            wall, cpu = time.perf_counter(), time.process_time()
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    found = {"wall": (time.perf_counter() - wall) / steps, "cpu": (time.process_time() - cpu) / steps}
    print(json.dumps(found))


def timed(way: str, steps: int) -> dict[str, float]:
    """One process of one way."""
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, __file__, "--child", "--steps", str(steps)],
        env={**clean, **WAYS[way]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Medians of milliseconds a step, and their ratio to spinning."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.steps)
        return
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, others in (("idle", 0), ("busy", os.cpu_count() or 1)):
        burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(others)]
        try:
            found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way in WAYS:
                    found[way].append(timed(way, options.steps))
        finally:
            for process in burning:
                process.kill()
                process.wait()
        result[name] = {
            way: {
                f"{kind}_ms": round(1000 * statistics.median(one[kind] for one in timings), 1)
                for kind in ("wall", "cpu")
            }
            for way, timings in found.items()
        }
        for way, medians in result[name].items():
            ratio = medians["wall_ms"] / result[name]["spin"]["wall_ms"]
            print(f"{name:5} {way:11} {medians['wall_ms']:8.1f} ms a step ({ratio:.2f} of spinning), "
                  f"{medians['cpu_ms']:8.1f} ms of CPU")  # fmt: skip
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
