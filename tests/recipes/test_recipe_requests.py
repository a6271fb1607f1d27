"""What a grow job may not ask for is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from scaler_wizard.errors import LimitError, SpecError
from scaler_wizard.store.workspace import Workspace


def test_more_than_twice_the_context_at_one_gate(harness: ModuleType, workspace: Workspace) -> None:
    value = harness.job_value(scaling={"context_schedule": [512]})
    with pytest.raises(LimitError, match="at most 2 times"):
        harness.create(workspace, value)


def test_a_prefix_for_a_longer_context_is_refused(
    harness: ModuleType, workspace: Workspace, tmp_path: Path
) -> None:
    # A prefix cannot be merged, and PEFT's format has no place for rotary settings.
    model = harness.save_tiny(tmp_path / "model", "llama")
    rows, texts = harness.write_messages(tmp_path / "rows.jsonl"), harness.write_texts(tmp_path / "t.txt")
    value = harness.job_value(
        model, scaling={"strategy": "prefix_tuning", "target_context": 256},
        dataset={"source": "local", "identifier": str(rows), "text_file": str(texts)},
    )  # fmt: skip
    with pytest.raises(SpecError, match="prefix_tuning"):
        harness.create(workspace, value)
