"""What tests that plant faults in whole runs work with."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from harness.fixtures import harness, one_thread, workspace
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store.workspace import Workspace

__all__ = ["harness", "one_thread", "workspace"]


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
