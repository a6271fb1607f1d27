"""What this machine has: GPUs, CPU, RAM, disk, and how fast it multiplies matrices. No torch.

A machine without a GPU is a first-class case. `FAKES` are machines for tests and for `scaler plan
--hardware NAME`. Does not know what any of it will be used for.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil

GIB = 1 << 30
PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int] | None

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16 natively (Ampere, 8.0, and later)."""
        return self.compute_capability is not None and self.compute_capability >= (8, 0)


@dataclass(frozen=True)
class Hardware:
    """One machine. Memory in bytes, speed in floating point operations per second."""

    gpus: tuple[Gpu, ...]
    cpu_model: str
    cpu_cores: int
    """Physical cores this process may use (affinity and cgroup quota)."""
    cpu_bf16: bool
    """AVX512-BF16 or AMX: bfloat16 matrix products run natively."""
    cpu_amx: bool
    ram_total: int
    ram_available: int
    disk_free: int
    matmul_flops: float
    """Matrix multiplication rate of the device that trains, in its best training precision."""
    flops_source: str
    """Where `matmul_flops` comes from: "measured ..." or "assumed ..."."""

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that a run on one GPU would use: the one with the most free memory."""
        return max(self.gpus, key=lambda gpu: gpu.free_bytes, default=None)

    @property
    def device_kind(self) -> str:
        """`cuda` where there is a GPU, else `cpu`."""
        return "cuda" if self.gpus else "cpu"

    @property
    def memory_total(self) -> int:
        """Memory of the device that trains: VRAM, or RAM without a GPU."""
        return self.gpu.total_bytes if self.gpu else self.ram_total

    @property
    def memory_available(self) -> int:
        """Free memory of the device that trains."""
        return self.gpu.free_bytes if self.gpu else self.ram_available

    @property
    def bf16(self) -> bool:
        """Whether the device that trains computes in bfloat16."""
        return self.gpu.bf16 if self.gpu else self.cpu_bf16

    def with_flops(self, flops: float, source: str) -> Hardware:
        """The same machine with a measured speed."""
        assert flops > 0
        return dataclasses.replace(self, matmul_flops=flops, flops_source=source)

    def without_gpus(self) -> Hardware:
        """The same machine with its CPU only, at the CPU's assumed speed."""
        if not self.gpus:
            return self
        flops, source = assumed_flops((), self.cpu_cores, self.cpu_bf16, self.cpu_amx)
        return dataclasses.replace(self, gpus=(), matmul_flops=flops, flops_source=source)

    def describe(self) -> str:
        """One line for a person."""
        gpus = ", ".join(f"{gpu.name} {gpu.total_bytes / GIB:.0f} GiB" for gpu in self.gpus) or "no GPU"
        bf16 = " with bf16" if self.cpu_bf16 else ""
        return (
            f"{gpus}; {self.cpu_cores} CPU cores{bf16}; {self.ram_available / GIB:.1f} of "
            f"{self.ram_total / GIB:.1f} GiB RAM free; {self.disk_free / GIB:.0f} GiB disk free"
        )


def probe_hardware(path: Path | str = ".") -> Hardware:
    """This machine as it is now; `disk_free` is that of `path` or its nearest existing parent."""
    gpus = _nvidia_gpus()
    info = _read(PROC / "cpuinfo")
    flags = cpu_flags(info)
    cores = usable_cores(info, _affinity(), cgroup_cores(PROC, CGROUP))
    memory = psutil.virtual_memory()
    limit, used = cgroup_memory(PROC, CGROUP)
    bf16, amx = bool(flags & {"avx512_bf16", "amx_bf16"}), "amx_bf16" in flags
    flops, source = assumed_flops(gpus, cores, bf16, amx)
    return Hardware(
        gpus=gpus,
        cpu_model=_cpu_model(info),
        cpu_cores=cores,
        cpu_bf16=bf16,
        cpu_amx=amx,
        ram_total=min(memory.total, limit),
        ram_available=max(0, min(memory.available, limit - used)),
        disk_free=_disk_free(Path(path)),
        matmul_flops=flops,
        flops_source=source,
    )


# Dense bf16 (fp16 before Ampere) matrix rates with 32-bit accumulation, from NVIDIA's data sheets.
GPU_FLOPS = (
    ("H200", 989e12), ("H100", 989e12), ("B200", 2250e12), ("A100", 312e12), ("L40", 181e12), ("L4", 121e12),
    ("A10", 125e12), ("5090", 209e12), ("4090", 165e12), ("4080", 97e12), ("4070", 58e12), ("4060", 30e12),
    ("3090", 71e12), ("3080", 59e12), ("3070", 40e12), ("3060", 25e12), ("V100", 112e12), ("T4", 65e12),
)  # fmt: skip
# Per core: AMX 1.3e12 and AVX-512 fp32 0.17e12 were measured on the reference machine (design/engine.md);
# the other two are derived from it, not measured: AVX512-BF16 twice the fp32 rate, AVX2 half of it.
AMX_FLOPS, AVX512_BF16_FLOPS, AVX2_FLOPS = 1.3e12, 0.3e12, 0.08e12


def assumed_flops(gpus: tuple[Gpu, ...], cores: int, bf16: bool, amx: bool) -> tuple[float, str]:
    """A matrix rate and where it comes from; never below one core's."""
    if gpus:
        best = max(gpus, key=lambda gpu: gpu.free_bytes)
        for part, flops in GPU_FLOPS:
            if part in best.name:
                return flops, f"assumed: data sheet of the {best.name}"
        return 20e12, f"assumed: the {best.name} is not in our table, 20 TFLOP/s taken"
    kind, each = ("AMX", AMX_FLOPS) if amx else ("bf16", AVX512_BF16_FLOPS) if bf16 else ("AVX2", AVX2_FLOPS)
    return each * max(1, cores), f"assumed: {cores} {kind} cores at {each / 1e12:g} TFLOP/s"


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Feature flags of the first CPU in the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def usable_cores(cpuinfo: str, affinity: frozenset[int], quota: float) -> int:
    """Physical cores among the allowed logical CPUs, at most the cgroup's quota; at least 1.

    Two hyper-threads of a core share its matrix units, so they count once.
    """
    cores = set()
    for block in cpuinfo.split("\n\n"):
        fields = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in block.splitlines())
        }
        if (processor := fields.get("processor", "")).isdigit() and int(processor) in affinity:
            cores.add((fields.get("physical id", "0"), fields.get("core id", processor)))
    count = len(cores) or min(psutil.cpu_count(logical=False) or 1, len(affinity) or 1)
    return max(1, min(count, math.ceil(quota) if math.isfinite(quota) else count))


def cgroup_cores(proc: Path, root: Path) -> float:
    """CPU quota of this process's cgroup (version 2) and its parents, in CPUs; infinity without one."""
    quotas = [math.inf]
    for folder in _cgroup_folders(proc, root):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas)


def cgroup_memory(proc: Path, root: Path) -> tuple[int, int]:
    """(limit, bytes that cannot be reclaimed) of the cgroup with the least room; a huge limit without one."""
    tightest = (1 << 62, 0)
    for folder in _cgroup_folders(proc, root):
        limit = _read(folder / "memory.max").strip()
        if not limit.isdigit():
            continue
        current = _read(folder / "memory.current").strip()
        used = int(current) if current.isdigit() else 0
        for line in _read(folder / "memory.stat").splitlines():
            key, _, value = line.partition(" ")
            if key == "inactive_file" and value.isdigit():
                used = max(0, used - int(value))  # page cache gives way to a growing process
        if int(limit) - used < tightest[0] - tightest[1]:
            tightest = (int(limit), used)
    return tightest


def _cgroup_folders(proc: Path, root: Path) -> list[Path]:
    """The unified-hierarchy folder of this process and its parents; limits apply at every level."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        if line.startswith("0::"):
            parts = [part for part in line[3:].split("/") if part and part != ".."]
            return [root.joinpath(*parts[:end]) for end in range(len(parts), -1, -1)]
    return []


def _nvidia_gpus() -> tuple[Gpu, ...]:
    gpus = _by_nvml()
    if gpus is None:
        gpus = _by_nvidia_smi()
    return visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(gpus: tuple[Gpu, ...], setting: str | None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, by index; names (UUIDs) are not resolved and keep all."""
    if setting is None:
        return gpus
    chosen = []
    for part in (item.strip() for item in setting.split(",")):
        if part.isdigit() and int(part) < len(gpus):
            chosen.append(gpus[int(part)])
        elif part.startswith(("GPU-", "MIG-")):
            return gpus
        else:
            break  # CUDA ignores everything after the first invalid entry
    return tuple(chosen)


def _by_nvml() -> tuple[Gpu, ...] | None:
    """GPUs by NVML, or None where its Python package or the driver is missing."""
    try:
        import pynvml  # optional package (extra "gpu")
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            text = name.decode() if isinstance(name, bytes) else str(name)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            gpus.append(Gpu(text, int(memory.total), int(memory.free), (int(major), int(minor))))
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    return tuple(gpus)


def _by_nvidia_smi() -> tuple[Gpu, ...]:
    query = "--query-gpu=name,memory.total,memory.free,compute_cap"
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_nvidia_smi(done.stdout)


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """GPUs from `nvidia-smi` CSV lines (name, total MiB, free MiB, capability); odd lines are left out."""
    gpus = []
    for row in csv.reader(text.splitlines()):
        cells = [cell.strip() for cell in row]
        if len(cells) != 4 or not cells[1].isdigit() or not cells[2].isdigit():
            continue
        major, _, minor = cells[3].partition(".")
        capability = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
        gpus.append(Gpu(cells[0], int(cells[1]) << 20, int(cells[2]) << 20, capability))
    return tuple(gpus)


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _disk_free(path: Path) -> int:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _fake(
    gpu: Gpu | None, cpu: str, cores: int, ram_gb: tuple[int, int], *, bf16: bool = False, disk_gb: int = 200
) -> Hardware:
    gpus = (gpu,) if gpu else ()
    flops, source = assumed_flops(gpus, cores, bf16, False)
    return Hardware(
        gpus, cpu, cores, bf16, False, ram_gb[0] * GIB, ram_gb[1] * GIB, disk_gb * GIB, flops, source
    )  # fmt: skip


FAKES: Mapping[str, Hardware] = MappingProxyType({
    "budget_laptop": _fake(None, "Intel Core i5-1235U", 4, (8, 5), disk_gb=60),
    "laptop_8gb_gpu": _fake(
        Gpu("NVIDIA GeForce RTX 4060 Laptop GPU", 8 * GIB, int(7.4 * GIB), (8, 9)), "AMD Ryzen 7 7840HS", 8,
        (16, 11), bf16=True,
    ),
    "rtx_3090": _fake(
        Gpu("NVIDIA GeForce RTX 3090", 24 * GIB, int(23.2 * GIB), (8, 6)), "AMD Ryzen 9 5900X", 12, (32, 26)
    ),
    "a100_80gb": _fake(
        Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, int(79.1 * GIB), (8, 0)), "AMD EPYC 7742", 16, (256, 240),
        disk_gb=1000,
    ),
    "two_cores": _fake(None, "AMD EPYC", 2, (23, 21), bf16=True, disk_gb=50),
})  # fmt: skip
