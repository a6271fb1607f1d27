"""The harness of tests/recipes for faults planted in whole runs; torch on one thread, as their workers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store.workspace import Workspace

HARNESS = Path(__file__).parents[1] / "recipes" / "harness.py"


def _load_harness() -> ModuleType:
    if "run_harness" in sys.modules:
        return sys.modules["run_harness"]
    # importmode=importlib puts no test directory on sys.path.
    spec = importlib.util.spec_from_file_location("run_harness", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def harness() -> ModuleType:
    """tests/recipes/harness.py."""
    return _load_harness()


@pytest.fixture(scope="session")
def material(harness: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[ContinualConfig, Path]:
    """A config that saves all the time, and a file of `LESSON_STEPS` steps."""
    folder = tmp_path_factory.mktemp("material")
    config = harness.continual_config(
        folder, training={"max_steps": harness.LESSON_STEPS, "batch_tokens": 512},
        safety={"checkpoint_every_sec": 0.05}, validation={"tasks": ["copy"], "check_every": 0},
    )  # fmt: skip
    return config, harness.write_tasks(folder / "a.jsonl", (1, 2), rows=40 * harness.LESSON_STEPS)


@pytest.fixture(scope="session")
def undisturbed(
    harness: ModuleType, material: tuple[ContinualConfig, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Hashes of the adapter that the file gives when nothing happens."""
    run = harness.drop(Workspace.create(tmp_path_factory.mktemp("whole") / "w"), *material)
    assert harness.attempt(run) == 0, run.exit_status()
    found: dict[str, str] = harness.digests(run.export / "adapter", ".safetensors")
    assert found
    return found


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A fresh workspace."""
    return Workspace.create(tmp_path / "workspace")
