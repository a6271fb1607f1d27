"""Fixtures of the rooms that run whole recipes, for their conftest.py to import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from harness import runs
from scaler_wizard.store.workspace import Workspace


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Torch on one thread, as the workers have it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def harness() -> ModuleType:
    """tests/harness/runs.py."""
    return runs


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A fresh workspace."""
    return Workspace.create(tmp_path / "workspace")
