"""Two processes over gloo compute what one does; a lost rank is an error on the other, in time."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from scaler_wizard.data.batches import Step, collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.errors import ProcessGroupError
from scaler_wizard.training.distributed import connected
from scaler_wizard.training.launch import Launch, read_launch
from scaler_wizard.training.loop import new_state, train
from scaler_wizard.training.sharing import share_step

sys.path.insert(0, str(Path(__file__).parent))
import test_loop
import two_ranks

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SCRIPT = Path(__file__).parent / "two_ranks.py"


def launch(out: Path, *scenarios: str) -> list[tuple[int, str]]:
    """Both ranks as torchrun would start them; (exit code, output) of each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-W", "ignore", str(SCRIPT), str(out), *scenarios],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    try:
        outputs = [process.communicate(timeout=180)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    return [(process.returncode, output) for process, output in zip(ranks, outputs, strict=True)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_ranks")
    ended = launch(folder)
    assert [code for code, _ in ended] == [0, 0], ended
    return folder


def one_process(model: Any, *, fused: bool) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    settings = dataclasses.replace(two_ranks.SETTINGS, fused=fused)
    state = new_state(model, settings)
    batches = test_loop.batches(two_ranks.MICRO_BATCH_TOKENS)
    results = list(train(model, batches, test_loop.SFT, settings, state=state))
    return two_ranks.course(results), {name: item.detach() for name, item in state.parameters.items()}


@pytest.mark.parametrize("name", ["replicated", "float32", "sharded", "checkpointed", "full"])
def test_two_ranks_train_as_one(out: Path, name: str) -> None:
    dtype = torch.float32 if name == "float32" else torch.float64
    model = two_ranks.plain_model(dtype) if name == "full" else test_loop.lora_model(dtype=dtype)
    before = {key: item.detach().clone() for key, item in model.named_parameters()}
    # Sharded layers run as the model has them, and the fused functions round to 32 bits in other places.
    course, weights = one_process(model, fused=name in ("replicated", "float32"))
    for rank in range(2):
        theirs = json.loads((out / f"{name}-{rank}.json").read_text())
        assert theirs == [pytest.approx(step, rel=1e-6) for step in course]
        found = load_file(out / f"{name}-{rank}.safetensors")
        assert found.keys() == weights.keys()
        for key, value in weights.items():
            assert (value - before[key]).norm() > 1e-3, "every tensor was trained"
            error = (found[key] - value).norm() / value.norm()
            # In float32 AdamW divides gradients that are all rounding by themselves.
            assert error < (1e-4 if name == "float32" else 1e-6), key
    both = [(out / f"{name}-{rank}.safetensors").read_bytes() for rank in range(2)]
    assert both[0] == both[1], "ranks hold the same bytes"


def test_one_ranks_guard_stops_both_before_the_step(out: Path) -> None:
    model = test_loop.lora_model()
    state = new_state(model, two_ranks.SETTINGS)
    training = train(model, test_loop.batches(), test_loop.SFT, two_ranks.SETTINGS, state=state)
    expected = two_ranks.course([next(training), next(training)])
    for rank in range(2):
        theirs = json.loads((out / f"divided-{rank}.json").read_text())
        assert theirs == [pytest.approx(step, rel=1e-5) for step in expected]


def test_ranks_with_other_data_are_refused(out: Path) -> None:
    for rank in range(2):
        assert "rows differ between the processes" in (out / f"different-{rank}.txt").read_text()


@pytest.mark.parametrize("how", ["dead", pytest.param("silent", marks=pytest.mark.slow)])
def test_a_lost_rank_is_an_error_in_time(tmp_path: Path, how: str) -> None:
    started = time.monotonic()
    ended = launch(tmp_path, how)
    assert [code for code, _ in ended] == [0, 1], ended
    said = (tmp_path / "lost.txt").read_text()
    assert "rank 0 lost the other processes while" in said
    assert "the last saved state is whole" in said
    assert time.monotonic() - started < 90


@pytest.mark.parametrize("address", ["192.0.2.7", "no-such-host.invalid"])
def test_only_this_machine_unless_allowed(address: str) -> None:
    with (
        pytest.raises(ProcessGroupError, match="loopback"),
        connected(Launch(0, 2, 0, address), timeout_sec=1),
    ):
        pass


def test_what_torchrun_says_is_checked() -> None:
    assert read_launch({}) is None
    whole = {
        "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
    }  # fmt: skip
    assert read_launch(whole) == Launch(1, 2, 1, "localhost")
    for name, value in {"RANK": "2", "WORLD_SIZE": "x", "LOCAL_RANK": "-1", "MASTER_PORT": None}.items():
        changed = {key: item for key, item in (whole | {name: value}).items() if item is not None}
        with pytest.raises(ProcessGroupError, match="names several processes"):
            read_launch(changed)


@given(
    st.lists(st.lists(st.integers(2, 40), min_size=1, max_size=6), min_size=1, max_size=6), st.integers(1, 5)
)
def test_a_step_is_divided_whole_and_evenly(bins: list[list[int]], n_ranks: int) -> None:
    numbers = iter(range(1000))
    step = Step(
        tuple(
            collate(
                TokenRow(n := next(numbers), np.full(length, n, dtype=np.int32), np.arange(length) % 3 > 0)
                for length in lengths
            )
            for lengths in bins
        )
    )
    shares = share_step(step, n_ranks)
    assert len({len(share) for share in shares}) == 1
    counted = [share.micro_batch for rank in shares for share in rank if share.counted]
    assert sum(micro.n_labels for micro in counted) == step.n_labels
    rows = sorted(
        (int(part[0]), len(part))
        for micro in counted
        for part in micro.input_ids[0].split(micro.segment_lengths)
    )
    assert rows == list(enumerate(length for lengths in bins for length in lengths))
    for micro in counted:
        again = collate(
            TokenRow(0, ids.numpy(), labels.numpy() >= 0)
            for ids, labels in zip(
                micro.input_ids[0].split(micro.segment_lengths),
                micro.labels[0].split(micro.segment_lengths), strict=True,
            )
        )  # fmt: skip
        for item in dataclasses.fields(micro):
            mine, theirs = getattr(micro, item.name), getattr(again, item.name)
            assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
    n_segments = sum(len(lengths) for lengths in bins)
    if n_segments >= n_ranks:
        assert all(any(share.counted for share in rank) for rank in shares), "nobody is idle"
