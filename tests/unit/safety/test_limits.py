from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.errors import LimitError
from scaler_wizard.safety.limits import (
    MemoryLimit,
    MemoryReading,
    check_context_step,
    check_memory,
    cpu_memory_limit,
    gpu_fraction,
    machine_bytes,
    read_cgroup,
)

GIB = 1 << 30


def test_memory() -> None:
    limit = MemoryLimit(1000)
    assert limit.limit_bytes == 900
    assert [check_memory(used, limit) for used in (0, 854, 855, 900, 901)] == [
        "ok",
        "ok",
        "warn",
        "warn",
        "over",
    ]


def test_context_step() -> None:
    check_context_step(8192, 16384)
    check_context_step(8192, 4096)
    with pytest.raises(LimitError, match=r"8,192 to 16,385.*put 16,384 into"):
        check_context_step(8192, 16385)


def test_cpu_limit_counts_what_can_still_be_had() -> None:
    reading = MemoryReading(total=16 * GIB, available=8 * GIB, rss=2 * GIB)
    assert cpu_memory_limit(reading).limit_bytes == int(0.9 * 10 * GIB)
    boxed = MemoryReading(16 * GIB, 8 * GIB, 2 * GIB, cgroup_max=4 * GIB, cgroup_used=3 * GIB)
    assert cpu_memory_limit(boxed).total_bytes == 3 * GIB
    assert machine_bytes(boxed) == 4 * GIB
    assert machine_bytes(reading) == 16 * GIB


@given(*[st.integers(0, 1 << 45)] * 5)
def test_cpu_limit_never_exceeds_the_machine(
    total: int, available: int, rss: int, group: int, used: int
) -> None:
    limit = cpu_memory_limit(MemoryReading(total, available, rss, group, used))
    assert 0 <= limit.limit_bytes <= 0.9 * min(total, group) + 1


def test_gpu_fraction() -> None:
    assert gpu_fraction(16 * GIB, 16 * GIB) == pytest.approx(0.9)
    assert gpu_fraction(16 * GIB, 8 * GIB) == pytest.approx(0.45)
    assert gpu_fraction(16 * GIB, 0) == 0


def cgroup(tmp_path: Path, membership: str) -> tuple[Path, Path]:
    inner = tmp_path / "fs" / "user" / "job"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text(f"{4 * GIB}\n")
    (inner.parent / "memory.current").write_text(f"{3 * GIB}\n")
    (inner.parent / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    proc = tmp_path / "cgroup"
    proc.write_text(membership)
    return tmp_path / "fs", proc


def test_cgroup_limit_of_an_ancestor_without_page_cache(tmp_path: Path) -> None:
    assert read_cgroup(*cgroup(tmp_path, "0::/user/job\n")) == (4 * GIB, 2 * GIB)


def test_the_tightest_cgroup_counts(tmp_path: Path) -> None:
    root, proc = cgroup(tmp_path, "0::/user/job\n")
    (root / "user" / "job" / "memory.max").write_text(f"{2 * GIB}\n")
    (root / "user" / "job" / "memory.current").write_text("7\n")
    assert read_cgroup(root, proc) == (2 * GIB, 7)


@pytest.mark.parametrize("membership", ["0::/\n", "4:memory:/x\n", "", "0::/../../etc\n", "0::/gone\n"])
def test_cgroup_without_a_limit(tmp_path: Path, membership: str) -> None:
    assert read_cgroup(*cgroup(tmp_path, membership)) == (None, 0)


def test_cgroup_without_membership_file(tmp_path: Path) -> None:
    assert read_cgroup(tmp_path, tmp_path / "none") == (None, 0)
