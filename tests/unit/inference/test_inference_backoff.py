"""Measuring that runs out of memory for real, in a process of its own, and what is done about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from scaler_wizard.errors import EvaluationMemoryError
from scaler_wizard.inference.backoff import MAX_HALVINGS, InferenceRoom
from scaler_wizard.inference.modes import DEFAULT_LIMITS, InferenceLimits, current_limits, within_limits

# Scores 16 rows of 200 tokens of a model with 32,000 words: logits of up to 256 MB at once.
CHILD = """
import json, resource, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from scaler_wizard.inference.backoff import InferenceRoom
from scaler_wizard.inference.scoring import score_targets

torch.set_num_threads(1)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, hidden_size=64, intermediate_size=128,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1)).eval()
rows = torch.randint(0, 32000, (16, 200)).tolist()
limit_mb = float(sys.argv[1])
if limit_mb:
    used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(limit_mb * 2**20), resource.RLIM_INFINITY))
said = []
room = InferenceRoom(on_halving=said.append)
found = room.run(lambda: score_targets(model, rows, [100] * 16))
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps({"found": found, "said": said, "logits": room.limits.logit_elements}))
"""

CPU = torch.device("cpu")


def child(limit_mb: float) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(limit_mb)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_same_numbers_within_half_the_memory() -> None:
    free, short = child(0), child(200)
    assert free["said"] == []
    assert short["said"]
    assert "memory ran out while measuring" in short["said"][0]
    assert short["logits"] < DEFAULT_LIMITS.logit_elements
    for row, other in zip(free["found"], short["found"], strict=True):
        assert other == pytest.approx(row, abs=1e-4)


def test_the_halving_is_bounded_and_holds_for_the_next_measurement() -> None:
    seen: list[InferenceLimits] = []

    def hopeless() -> None:
        seen.append(current_limits())
        raise MemoryError

    room = InferenceRoom()
    with pytest.raises(EvaluationMemoryError, match="measuring ran out of memory") as caught:
        room.run(hopeless)
    assert len(seen) == MAX_HALVINGS + 1
    assert [limits.batch_tokens for limits in seen] == [4096 >> n for n in range(MAX_HALVINGS + 1)]
    assert all(limits.max_rows >= 1 and limits.chunk_for(CPU) >= 64 for limits in seen)
    assert "newest checkpoint" in caught.value.todo
    assert room.run(current_limits) == seen[-1]
    assert current_limits() == DEFAULT_LIMITS, "outside everything is as it was"


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    room = InferenceRoom()
    with pytest.raises(RuntimeError, match="shapes"):
        room.run(lambda: (_ for _ in ()).throw(RuntimeError("shapes do not match")))
    assert room.limits == DEFAULT_LIMITS


def test_limits_a_caller_names_win_inside() -> None:
    with within_limits(InferenceLimits(batch_tokens=7)):
        assert current_limits().batch_tokens == 7
        with within_limits(InferenceLimits(batch_tokens=3)):
            assert current_limits().batch_tokens == 3
        assert current_limits().batch_tokens == 7
