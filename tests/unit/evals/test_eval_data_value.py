"""What a file would teach: a new task does, noise does not; sampling is by content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scaler_wizard.data.generate import generated_rows
from scaler_wizard.data.rows import Row
from scaler_wizard.errors import EmptyDataError
from scaler_wizard.evals.data_value import ValueSettings, data_value, main, sample_rows
from scaler_wizard.models.load import load_model

SETTINGS = ValueSettings(rows=32, steps=12)


@pytest.fixture
def model() -> Any:
    loaded = load_model("seedling", dtype=torch.float32, device="cpu")
    loaded.tokenizer.model_max_length = 1 << 40
    return loaded


def taught(count: int) -> list[Row]:
    rows = generated_rows(("copy", "reverse"), (1, 2, 3), count, 0)
    return [Row(number, row.as_dict()) for number, row in enumerate(rows, start=1)]


def test_a_task_it_does_not_know_teaches(model: Any) -> None:
    found = data_value(model.model, model.tokenizer, taught(32), SETTINGS)
    assert (found.rows, found.trained_rows, found.quarantined) == (16, 16, 0)
    assert found.teaches
    assert found.gain == pytest.approx(found.before - found.after)
    assert found.before_ci95[0] < found.before < found.before_ci95[1]
    assert "would teach" in found.words()


def test_a_probe_that_learns_nothing_reports_nothing(model: Any) -> None:
    still = ValueSettings(rows=32, steps=2, learning_rate=0.0)
    found = data_value(model.model, model.tokenizer, taught(32), still)
    assert found.gain == pytest.approx(0.0, abs=1e-6)
    assert not found.teaches
    assert "nothing that carries over" in found.words()


def test_too_few_rows(model: Any) -> None:
    with pytest.raises(EmptyDataError, match="at least 8"):
        data_value(model.model, model.tokenizer, taught(7), SETTINGS)


def test_sample_does_not_depend_on_order(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row {n}"}) + "\n" for n in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    (tmp_path / "b.jsonl").write_text("".join(rows[::-1]))
    first, second = (
        {row.value["text"] for row in sample_rows(tmp_path / name, 20, 1)} for name in ("a.jsonl", "b.jsonl")
    )
    assert first == second
    assert len(first) == 20
    assert first != {row.value["text"] for row in sample_rows(tmp_path / "a.jsonl", 20, 2)}


def test_process_says_what_it_refuses_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "seedling", "--data", str(tmp_path / "none.jsonl")]) == 5
    assert json.loads(capsys.readouterr().out)["error"] == "DataFileMissingError"
