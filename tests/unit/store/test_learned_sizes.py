"""What is remembered of memory between attempts and runs, and what is made of files that others wrote."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from scaler_wizard.store.learned_sizes import LearnedSize, learned_sizes, remember
from scaler_wizard.store.oom_kills import oom_kills
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.training_mark import (
    NAME,
    TrainingMark,
    killed_for_memory,
    note_killed,
    read_mark,
    write_mark,
)

SIZE = LearnedSize("abc", 512, 1 << 30, "out_of_memory", 1.5)
MARK = TrainingMark("P1", 2, ((0, 4096), (17, 2048)), True, 5)


def test_a_size_is_kept_and_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "learned"
    assert learned_sizes(folder) == ()
    remember(folder, SIZE)
    remember(folder, LearnedSize("abc", 256, 1 << 30, "killed", 2.5))
    remember(folder, LearnedSize("other", 64, 1 << 30, "measured", 2.0))
    assert [(size.key, size.tokens) for size in learned_sizes(folder)] == [("abc", 256), ("other", 64)]


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 0}, {"tokens": -5}, {"tokens": True}, {"tokens": 1e3}, {"tokens": 1 << 60},
        {"tokens": "512"}, {"memory_available": None}, {"cause": "luck"}, {"time": "nan"}, {"time": [1]},
        {"key": "../abc"}, {"key": "another"}, {"key": 7},
    ],
)  # fmt: skip
def test_a_size_that_nobody_wrote_is_not_there(tmp_path: Path, change: dict[str, object]) -> None:
    remember(tmp_path, SIZE)
    assert len(learned_sizes(tmp_path)) == 1
    (tmp_path / "abc.json").write_text(json.dumps({**asdict(SIZE), **change}))
    assert learned_sizes(tmp_path) == ()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"key": "abc"}', "\x00"])
def test_a_file_that_is_no_size_is_not_there(tmp_path: Path, text: str) -> None:
    (tmp_path / "abc.json").write_text(text)
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    (tmp_path / "folder.json").mkdir()
    assert learned_sizes(tmp_path) == ()


def test_the_mark_is_read_back(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", "run")
    assert read_mark(run) is None
    write_mark(run, MARK)
    assert read_mark(run) == MARK


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": []}, {"sizes": [[1, 5]]}, {"sizes": [[0, 0]]}, {"sizes": [[0, 5], [0, 6]]},
        {"sizes": [[0, 5], [9, 6], [3, 7]]}, {"sizes": [[0, 1 << 50]]}, {"sizes": [[0, 5, 6]]},
        {"sizes": [["0", 5]]}, {"sizes": 5}, {"attempt": "x"}, {"oom_kills": "5"},
        {"sizes": [[n, 5] for n in range(1001)]},
    ],
)  # fmt: skip
def test_a_mark_that_nobody_wrote_is_not_there(tmp_path: Path, change: dict[str, object]) -> None:
    run = RunDir.create(tmp_path / "run", "run")
    (run.path / NAME).write_text(json.dumps({**asdict(MARK), **change}))
    assert read_mark(run) is None


def test_only_evidence_makes_a_kill_the_kernels() -> None:
    assert killed_for_memory(MARK, 6)
    assert not killed_for_memory(MARK, 5), "nobody was killed for memory: a person's kill -9"
    assert not killed_for_memory(MARK, None)
    assert not killed_for_memory(None, 6)
    assert not killed_for_memory(TrainingMark("P1", 2, ((0, 5),), False, 5), 6), "it was not training"
    assert not killed_for_memory(TrainingMark("P1", 2, ((0, 5),), True, None), 6)


def test_a_kill_that_the_host_saw_counts_where_the_count_is_gone(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "grow-0001", "grow")
    write_mark(run, MARK)
    note_killed(run, MARK.attempt + 1)
    assert not killed_for_memory(read_mark(run), 0), "another attempt"
    note_killed(run, MARK.attempt)
    assert killed_for_memory(read_mark(run), 0), "a new cgroup counts from nothing"
    assert killed_for_memory(read_mark(run), None)
    write_mark(run, replace(MARK, active=False))
    note_killed(run, MARK.attempt)
    assert not killed_for_memory(read_mark(run), 0), "it was not training"


def test_the_groups_own_count_comes_before_the_machines(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    (root / "a" / "b").mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    assert oom_kills(root, proc) is None
    (proc / "vmstat").write_text("nr_free_pages 5\noom_kill 12\n")
    assert oom_kills(root, proc) == 12
    (proc / "self" / "cgroup").write_text("4:memory:/x\n0::/a/b\n")
    assert oom_kills(root, proc) == 12, "no memory controller there"
    (root / "a" / "b" / "memory.events").write_text("low 0\noom 4\noom_kill 3\noom_group_kill 0\n")
    assert oom_kills(root, proc) == 3
    (proc / "self" / "cgroup").write_text("0::/a/../../etc\n")
    assert oom_kills(root, proc) == 12


def test_the_kernel_here_counts() -> None:
    found = oom_kills()
    assert found is None or found >= 0
