"""The teacher's cache: exact, computed once, content-addressed, resumable, verified; the teacher let go."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaler_wizard.data.batches import collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.errors import CheckpointError, EmptyDataError
from scaler_wizard.losses.chunked import at_targets
from scaler_wizard.losses.distill import Divergence, distillation_loss, top_k
from scaler_wizard.losses.match import unit_rms
from scaler_wizard.losses.sft import Head
from scaler_wizard.models.tiny import tiny_model
from scaler_wizard.training import teacher as teacher_module
from scaler_wizard.training.teacher import (
    FACTS_FILE,
    PROGRESS_FILE,
    CacheKey,
    TeacherCache,
    cache_teacher,
    distinct_rows,
    rows_digest,
)

VOCABULARY = 262


def make_rows(count: int = 9, seed: int = 0) -> list[TokenRow]:
    rng = np.random.RandomState(seed)
    return [
        TokenRow(n, rng.randint(6, VOCABULARY, length).astype(np.int32), rng.rand(length) < 0.6)
        for n, length in enumerate(rng.randint(3, 20, count))
    ]


def key_of(rows: Sequence[TokenRow], **changes: Any) -> CacheKey:
    return replace(CacheKey("teacher", rows_digest(rows), 5, VOCABULARY, "float32", True), **changes)


class Loader:
    """Loads a tiny teacher, counting, and remembering it only weakly."""

    def __init__(self) -> None:
        self.loaded = 0
        self.alive: weakref.ref[Any] | None = None

    def __call__(self) -> Any:
        self.loaded += 1
        model = tiny_model(seed=7)
        self.alive = weakref.ref(model)
        return model


def build(
    root: Path, rows: Sequence[TokenRow], load: Callable[[], Any] | None = None, **changes: Any
) -> TeacherCache:
    return cache_teacher(root, key_of(rows, **changes), rows, load or Loader(), micro_batch_tokens=30)


def test_what_is_kept_is_what_the_teacher_says(tmp_path: Path) -> None:
    """Against the model's own forward pass, one row at a time, looked up in another packing and order."""
    rows = make_rows()
    cache = build(tmp_path, rows)
    chosen = [rows[index] for index in (4, 0, 7)]
    micro = collate(chosen)
    found = cache.lookup(micro)
    model = tiny_model(seed=7)
    expected, hidden = [], []
    with torch.no_grad():
        for row in chosen:
            alone = collate([row])
            output = model(input_ids=alone.input_ids, output_hidden_states=True)
            expected.append(at_targets(output.logits, alone.labels))
            hidden.append(at_targets(output.hidden_states[-1], alone.labels)[0])
    logits, targets = (torch.cat(parts) for parts in zip(*expected, strict=True))
    kept = top_k(logits, 5)
    assert torch.equal(found.top.tokens, kept.tokens)
    torch.testing.assert_close(found.top.log_probs, kept.log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.top.tail, kept.tail, rtol=1e-5, atol=1e-5)
    at_target = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.target_log_probs, at_target, rtol=1e-5, atol=1e-5)
    assert found.hidden is not None
    torch.testing.assert_close(found.hidden.float(), unit_rms(torch.cat(hidden)), rtol=2e-3, atol=2e-3)
    assert cache.hidden_size == 32
    everything = cache.lookup(collate(rows)).top.log_probs.exp().sum(-1)
    assert cache.kept_mass == pytest.approx(everything.mean().item(), rel=1e-4)


def test_a_whole_vocabulary_cache_is_the_teacher(tmp_path: Path) -> None:
    """Distilling the teacher from its own cache: no loss at any temperature."""
    rows = make_rows(4)
    cache = build(tmp_path, rows, k=VOCABULARY, keep_hidden=False)
    model, micro = tiny_model(seed=7), collate(rows[:1])
    with torch.no_grad():
        states = model(input_ids=micro.input_ids, output_hidden_states=True).hidden_states[-1]
    hidden, targets = at_targets(states, micro.labels)
    head, cached = Head(model.lm_head.weight.detach()), cache.lookup(micro)
    for temperature in (1.0, 3.0):
        found = distillation_loss(hidden, head, targets, cached.top, Divergence("js", temperature))
        assert abs(found.loss_sum.item()) < 1e-5
    assert cached.hidden is None


def test_computed_once_and_the_teacher_is_let_go(tmp_path: Path) -> None:
    rows, load = make_rows(), Loader()
    build(tmp_path, rows, load)
    gc.collect()
    assert load.alive is not None
    assert load.alive() is None, "the teacher is still in memory"
    again = build(tmp_path, [*rows, rows[2]], load)
    assert load.loaded == 1
    assert again.n_targets == sum(row.n_labels for row in distinct_rows(rows).values())
    build(tmp_path, rows, load, k=6)
    assert load.loaded == 2, "another k is another cache"


def test_an_interrupted_computation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_module, "PROGRESS_SEC", 0.0)
    rows = make_rows(12)
    whole = build(tmp_path / "whole", rows)
    seen: list[int] = []

    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise Interrupted

    root, key = tmp_path / "cut", key_of(rows)
    with pytest.raises(Interrupted):
        cache_teacher(root, key, rows, Loader(), micro_batch_tokens=30, on_progress=interrupt)
    directory = root / key.digest
    assert json.loads((directory / PROGRESS_FILE).read_text())["rows_done"] == seen[-1]
    with pytest.raises(CheckpointError, match=FACTS_FILE):
        TeacherCache(directory, key, rows)
    rest: list[int] = []
    cache_teacher(
        root, key, rows, Loader(), micro_batch_tokens=30, on_progress=lambda done, total: rest.append(done)
    )
    assert min(rest) > seen[-1], "rows were computed twice"
    for path in sorted(whole.directory.glob("*.npy")):
        assert (directory / path.name).read_bytes() == path.read_bytes(), path.name
    assert not (directory / PROGRESS_FILE).exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "pickle", "facts", "link"])
def test_a_damaged_cache_is_refused_and_computed_again(tmp_path: Path, damage: str) -> None:
    rows, load = make_rows(), Loader()
    cache = build(tmp_path, rows, load)
    path, facts = cache.directory / "log_probs.npy", cache.directory / FACTS_FILE
    good = path.read_bytes()
    if damage == "flip":
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(good[:40])
    elif damage == "pickle":
        path.unlink()
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif damage == "link":
        path.rename(tmp_path / "elsewhere.npy")
        path.symlink_to(tmp_path / "elsewhere.npy")
    else:
        facts.write_text("[" * 5000)
    with pytest.raises(CheckpointError, match=str(cache.directory)):
        TeacherCache(cache.directory, cache.key, rows)
    build(tmp_path, rows, load)
    assert load.loaded == 2
    assert path.read_bytes() == good


def test_the_same_ids_with_other_targets_are_another_row(tmp_path: Path) -> None:
    ids = np.arange(10, 18, dtype=np.int32)
    early, late = TokenRow(1, ids, ids < 14), TokenRow(2, ids, ids >= 14)
    cache = build(tmp_path, [early, late])
    assert cache.n_targets == 3 + 4
    assert cache.lookup(collate([late])).target_log_probs.shape == (4,)
    with pytest.raises(AssertionError, match="not in the teacher's cache"):
        cache.lookup(collate([TokenRow(3, ids + 1, ids < 14)]))


def test_rows_without_targets_are_nothing_to_ask(tmp_path: Path) -> None:
    rows = [TokenRow(1, np.arange(6, 12, dtype=np.int32), np.zeros(6, np.bool_))]
    with pytest.raises(EmptyDataError, match="no row"):
        build(tmp_path, rows)
