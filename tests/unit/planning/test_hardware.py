from __future__ import annotations

import math
from pathlib import Path

from scaler_wizard.planning.hardware import (
    FAKES,
    GIB,
    Gpu,
    cgroup_cores,
    cgroup_memory,
    cpu_flags,
    parse_nvidia_smi,
    probe_hardware,
    usable_cores,
    visible,
)

CPUINFO = "\n\n".join(
    f"processor\t: {cpu}\nmodel name\t: X\nphysical id\t: 0\ncore id\t\t: {cpu // 2}\nflags\t\t: "
    f"sse avx512_bf16"
    for cpu in range(8)
)


def test_this_machine(tmp_path: Path) -> None:
    found = probe_hardware(tmp_path / "not" / "there" / "yet")
    assert found.cpu_cores >= 1
    assert 0 < found.ram_available <= found.ram_total
    assert found.disk_free > 0
    assert found.matmul_flops > 0
    assert found.memory_available > 0


def test_hyper_threads_share_a_core() -> None:
    assert usable_cores(CPUINFO, frozenset(range(8)), math.inf) == 4
    assert usable_cores(CPUINFO, frozenset({0, 1, 2}), math.inf) == 2
    assert usable_cores(CPUINFO, frozenset(range(8)), 1.5) == 2
    assert usable_cores(CPUINFO, frozenset({0}), 0.1) == 1


def test_flags() -> None:
    assert "avx512_bf16" in cpu_flags(CPUINFO)
    assert cpu_flags("") == frozenset()


def test_cgroup_limits_apply_at_every_level(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("1:name=systemd:/x\n0::/a/b\n")
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "cpu.max").write_text("150000 100000\n")
    (root / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (root / "a" / "memory.max").write_text(str(4 * GIB))
    (root / "a" / "memory.current").write_text(str(3 * GIB))
    (root / "a" / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    (root / "a" / "b" / "memory.max").write_text("max\n")
    assert cgroup_cores(proc, root) == 1.5
    assert cgroup_memory(proc, root) == (4 * GIB, 2 * GIB)
    assert math.isinf(cgroup_cores(tmp_path / "none", root))


def test_nvidia_smi_lines() -> None:
    text = (
        "NVIDIA GeForce RTX 3090, 24576, 23000, 8.6\nBroken, [N/A], 1, 8.0\nTesla V100, 16384, 16000, [N/A]\n"
    )
    assert parse_nvidia_smi(text) == (
        Gpu("NVIDIA GeForce RTX 3090", 24576 << 20, 23000 << 20, (8, 6)),
        Gpu("Tesla V100", 16384 << 20, 16000 << 20, None),
    )


def test_visible_devices() -> None:
    gpus = tuple(Gpu(str(index), GIB, GIB, (8, 0)) for index in range(3))
    assert visible(gpus, None) == gpus
    assert visible(gpus, "2,0") == (gpus[2], gpus[0])
    assert visible(gpus, "") == ()
    assert visible(gpus, "-1") == ()
    assert visible(gpus, "1,9,0") == (gpus[1],)


def test_fakes_cover_the_cases() -> None:
    assert FAKES["budget_laptop"].device_kind == "cpu"
    assert FAKES["rtx_3090"].memory_total == 24 * GIB
    assert FAKES["a100_80gb"].bf16
    stripped = FAKES["rtx_3090"].without_gpus()
    assert stripped.device_kind == "cpu"
    assert stripped.matmul_flops < FAKES["rtx_3090"].matmul_flops
