"""Out of memory for real: a data limit on a process of its own, and a training that gets through below it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from scaler_wizard.data.batches import Batches
from scaler_wizard.data.token_rows import TokenRow, TokenRows
from scaler_wizard.errors import TrainingMemoryError
from scaler_wizard.training.backoff import MicroBatchSizes, SizedBatches, halve
from scaler_wizard.training.out_of_memory import is_out_of_memory

# A child of one thread: 6 steps of a 2-layer model of width 256 in forward passes of 4,096 tokens (about
# 330 MB of activations), with at most LIMIT_MB more than it holds when it begins. Prints what happened.
CHILD = """
import json, resource, sys
import numpy as np, torch
from transformers import LlamaConfig, LlamaForCausalLM
from scaler_wizard.data.batches import Batches
from scaler_wizard.data.token_rows import TokenRow, TokenRows
from scaler_wizard.errors import TrainingMemoryError
from scaler_wizard.training.backoff import MicroBatchSizes, SizedBatches, train_within_memory
from scaler_wizard.training.forward import make_objective
from scaler_wizard.training.loop import TrainSettings, new_state

limit_mb, row = float(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=101, hidden_size=256, intermediate_size=1024, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=4, initializer_range=0.1)
model = LlamaForCausalLM(config)
rng = np.random.RandomState(1)
rows = TokenRows.of(
    TokenRow(n, rng.randint(0, 101, row).astype(np.int32), np.ones(row, bool)) for n in range(96)
)
sizes = MicroBatchSizes([(0, 4096)])
whole = Batches(rows, context=row, batch_tokens=4096, micro_batch_tokens=4096, seed=2)
batches = SizedBatches(whole, sizes)
settings = TrainSettings(total_steps=6, learning_rate=1e-3)
state = new_state(model, settings)
if limit_mb:
    used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(limit_mb * 2**20), resource.RLIM_INFINITY))
halvings, losses, error = [], [], ""
try:
    for result in train_within_memory(model, batches, make_objective("sft"), settings, sizes=sizes,
                                      on_halving=halvings.append, state=state):
        losses.append(result.loss)
except TrainingMemoryError as failure:
    error = str(failure)
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps({
    "losses": losses, "error": error, "sizes": sizes.changes, "step": state.step,
    "halvings": [[h.step, h.tokens_before, h.tokens, h.passes_before, h.passes, h.found] for h in halvings],
}))
"""


def child(limit_mb: float, row: int = 64) -> dict[str, Any]:
    """One training in a process of its own, under a data limit of so many MiB on top (0: none)."""
    # Freed blocks go back at once, so that what is limited is what is in use.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(limit_mb), str(row)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def unrestricted() -> dict[str, Any]:
    return child(0)


def test_the_loss_curve_is_the_unrestricted_one(unrestricted: dict[str, Any]) -> None:
    assert unrestricted["halvings"] == []
    restricted = child(200)
    halvings = restricted["halvings"]
    assert halvings, "200 MiB must not be enough for 4,096 tokens at once"
    assert {step for step, *_ in halvings} == {1}, "what fits once goes on fitting"
    for (_, before, after, passes_before, passes, found), size in zip(halvings, (4096, 2048), strict=False):
        assert before == size
        assert after <= before // 2
        assert passes >= 2 * passes_before
        assert "allocate" in found
    assert restricted["error"] == ""
    # Equal up to the order in which micro-batches are summed: 1e-5 relative, after six steps.
    assert restricted["losses"] == pytest.approx(unrestricted["losses"], rel=1e-5)
    assert len(restricted["losses"]) == 6


def test_out_of_memory_at_step_0_again_and_again_ends_with_advice() -> None:
    # Rows of 1,024 tokens: two halvings lead from four rows a pass to one, and one does not fit either.
    found = child(16, row=1024)
    assert found["losses"] == []
    assert found["step"] == 0
    assert [tokens for _, _, tokens, *_ in found["halvings"]] == [2048, 1024]
    assert "a forward pass of one row, 1,024 tokens, does not fit" in found["error"]
    assert "activation_checkpointing: on" in found["error"]


def sized(tokens: int = 40, lengths: tuple[int, ...] = (10, 10, 10, 10, 10, 10)) -> SizedBatches:
    rows = TokenRows.of(
        TokenRow(n, torch.arange(length).int().numpy(), torch.ones(length, dtype=torch.bool).numpy())
        for n, length in enumerate(lengths)
    )
    sizes = MicroBatchSizes([(0, tokens)])
    return SizedBatches(Batches(rows, context=100, batch_tokens=30, micro_batch_tokens=tokens, seed=1), sizes)


def test_halving_starts_at_what_the_step_holds_and_keeps_its_rows() -> None:
    batches = sized(tokens=4000)
    before = [row.number for row in batches.rows_of(1)]
    found = halve(batches, batches.sizes, 1, "no room")
    assert (found.step, found.tokens_before, found.tokens) == (2, 30, 10)
    assert (found.passes_before, found.passes) == (1, 3)
    assert [row.number for row in batches.rows_of(1)] == before
    assert batches.step(0).micro_batches[0].n_tokens == 30, "steps before it stay as they were"
    assert max(micro.n_tokens for micro in batches.step(5).micro_batches) == 10


def test_one_row_a_pass_is_the_floor_and_changes_nothing() -> None:
    batches = sized(tokens=10)
    with pytest.raises(TrainingMemoryError, match="one row, 10 tokens") as caught:
        halve(batches, batches.sizes, 0, "no room")
    assert batches.sizes.changes == [(0, 10)]
    assert "smaller model" in caught.value.todo


def test_sizes_remember_where_they_changed() -> None:
    sizes = MicroBatchSizes([(0, 4096)])
    sizes.change(17, 2048)
    sizes.change(20, 1024)
    assert [sizes.at(step) for step in (0, 16, 17, 19, 20, 99)] == [4096, 4096, 2048, 2048, 1024, 1024]
    sizes.change(3, 512)
    assert sizes.changes == [(0, 4096), (3, 512)], "resumed before them: the later ones are forgotten"
    sizes.change(0, 256)
    assert sizes.changes == [(0, 256)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_the_words_are_those_of_a_real_failure() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
