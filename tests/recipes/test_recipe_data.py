"""Every data format reaches token rows through the same two calls that a run makes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaler_wizard.data.dataset import load_dataset
from scaler_wizard.data.tokens import tokenize_rows
from scaler_wizard.models.tiny import tiny_tokenizer
from scaler_wizard.specs.sections import DatasetSection

ROWS = 40
CONTEXT = 8192


def question(number: int) -> tuple[str, str]:
    return f"What is {number} plus 1?", f"{number + 1}."


def alpaca(number: int) -> dict[str, str]:
    asked, answer = question(number)
    return {"instruction": asked, "input": "", "output": answer}


def sharegpt(number: int) -> dict[str, Any]:
    asked, answer = question(number)
    return {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]}


def messages(number: int) -> dict[str, Any]:
    asked, answer = question(number)
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def pair(number: int) -> dict[str, str]:
    asked, answer = question(number)
    return {"prompt": asked, "completion": answer}


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def json_array(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def csv_table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def plain_text(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.txt"
    path.write_text("\n\n".join(f"{row['prompt']} {row['completion']}" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("found", "make", "write"),
    [
        ("messages", messages, jsonl),
        ("messages", messages, parquet),
        ("sharegpt", sharegpt, json_array),
        ("alpaca", alpaca, csv_table),
        ("alpaca", alpaca, jsonl),
        ("prompt_completion", pair, parquet),
        ("prompt_completion", pair, csv_table),
        ("text", pair, plain_text),
    ],
)
def test_every_format_becomes_token_rows(
    found: str, make: Callable[[int], Any], write: Callable[[Path, list[Any]], Path], tmp_path: Path
) -> None:
    # Plain text has no rows: its documents are pieces of up to 16,384 characters.
    count = 40 * ROWS if found == "text" else ROWS
    path = write(tmp_path, [make(number) for number in range(count)])
    dataset = load_dataset(DatasetSection(identifier=str(path)), seed=0, target_context=CONTEXT)
    assert dataset.row_format == found
    assert found == "text" or len(dataset.train) + len(dataset.held_out) == ROWS
    assert not {row.number for row in dataset.train} & {row.number for row in dataset.held_out}

    tokenizer = tiny_tokenizer()
    tokens = tokenize_rows(
        dataset.train, dataset.row_format, tokenizer, context=CONTEXT, source=dataset.source
    )
    assert len(tokens.rows) >= len(dataset.train)
    learned = "".join(tokenizer.decode(row.ids[row.trained].tolist()) for row in tokens.rows)
    read = "".join(tokenizer.decode(row.ids.tolist()) for row in tokens.rows)
    held_out = {number for number in range(count) if question(number)[0] not in read}
    assert 0 < len(held_out) < (count if found == "text" else count / 2)
    for number in set(range(count)) - held_out:
        asked, answer = question(number)
        assert answer in learned
        # Questions are read, not learned, except where everything is text.
        assert (asked in learned) == (found == "text")
