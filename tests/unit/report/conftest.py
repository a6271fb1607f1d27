"""Run directories for the report's tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def _load_fixture_module(name: str) -> ModuleType:
    # importmode=importlib puts no test directory on sys.path.
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


runs = _load_fixture_module("report_fixture")
bootstraps = _load_fixture_module("bootstrap_fixture")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A completed run."""
    return runs.build_run(tmp_path / "grow-0001")


@pytest.fixture
def bootstrap_dir(tmp_path: Path) -> Path:
    """A completed bootstrap whose fifth stage did not pass."""
    return bootstraps.build_bootstrap_run(tmp_path / "bootstrap-0001")


@pytest.fixture
def unfinished_dir(tmp_path: Path) -> Path:
    """A run the breaker stopped in P1 and P2 was never finished; no result.json."""
    return runs.build_run(tmp_path / "grow-0002", finished=False)


@pytest.fixture
def write_events() -> Callable[..., None]:
    """`write_events(run_dir, events)` replaces events.jsonl."""
    return runs.write_events


@pytest.fixture
def result() -> dict:
    """result.json of the completed run."""
    return runs.result_of("grow-0001")
