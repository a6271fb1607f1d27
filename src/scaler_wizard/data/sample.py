"""The first rows of a job's data exactly as the model will see them, for `scaler plan`. Torch-free."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from scaler_wizard.data.dataset import Dataset, load_dataset, open_rows
from scaler_wizard.data.rows import BadRows
from scaler_wizard.data.tokens import TokenReport, highlight_sample, tokenize_rows
from scaler_wizard.errors import EmptyDataError, ModelError
from scaler_wizard.planning.plan import DataSummary
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.specs.sections import DatasetSection

SAMPLED_ROWS = 200
LONGER_ROWS = 4
"""The longest row of a whole file against the longest of its first 200: assumed, for the memory of a step."""
MEASURED_CHARACTERS = 20_000
MIN_DOCUMENTS = 4
SHORTEST_WINDOW = 64


@dataclass(frozen=True, slots=True)
class DataSample:
    """What the data looks like."""

    words: str
    """What was found, in a sentence."""
    template: str
    """Which chat template is used, in a sentence; "" for plain text."""
    runs: tuple[tuple[str, bool], ...]
    """One row as (text, trained) runs."""
    end_of_turn: str
    """"yes (<token>)", "no", or "not a conversation"."""
    summary: DataSummary
    held_out_tokens: int
    """About how many tokens there are to measure the context on."""


def load_tokenizer(path: Path) -> Any:
    """A fast tokenizer from a model directory, without importing torch.

    Raises:
        ModelError: there is no tokenizer.json.
    """
    if not (path / "tokenizer.json").is_file():
        raise ModelError(
            f"{path} has no tokenizer.json", "a fast tokenizer beside the model",
            "convert it once with transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...))",
        )  # fmt: skip
    # Late import: transformers takes 0.6 s, and only the commands that look at data need it.
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True)


def sample_data(job: GrowJob, tokenizer_path: Path) -> DataSample:
    """Read the job's data and tokenise its first rows.

    Raises:
        DataError, ModelError: see `dataset.load_dataset` and `tokens.tokenize_rows`.
    """
    target = job.scaling.target_context or 1024
    dataset = load_dataset(job.dataset, job.training.seed, target)
    tokenizer = load_tokenizer(tokenizer_path)
    tokenized = tokenize_rows(
        dataset.train[:SAMPLED_ROWS], dataset.row_format, tokenizer,
        context=1 << 20, system_prompt=job.dataset.system_prompt, source=dataset.source,
    )  # fmt: skip
    report = tokenized.report
    scale = len(dataset.train) / max(1, report.rows)
    summary = DataSummary(
        rows=len(dataset.train), tokens_estimate=round(report.tokens * scale), longest=report.longest,
        format=dataset.row_format,
    )  # fmt: skip
    runs = highlight_sample(tokenized.rows[0], tokenizer)
    return DataSample(
        dataset.words, report.template, tuple(runs), _end_of_turn(report), summary,
        _held_out_tokens(dataset, tokenizer, report),
    )  # fmt: skip


def sample_file(section: DatasetSection, tokenizer_path: Path) -> DataSample:
    """The first rows of one file, however large it is; its rows are estimated from its bytes.

    Raises:
        DataError, ModelError: see `dataset.open_rows` and `tokens.tokenize_rows`.
    """
    path = Path(section.identifier)
    bad = BadRows(section.bad_rows)
    row_format, rows = open_rows(section, bad)
    head = list(islice(rows, SAMPLED_ROWS + 1))
    tokenizer = load_tokenizer(tokenizer_path)
    tokenized = tokenize_rows(
        head[:SAMPLED_ROWS], row_format, tokenizer, context=1 << 20, system_prompt=section.system_prompt,
        bad_rows=bad, source=section.identifier,
    )  # fmt: skip
    report = tokenized.report
    count = len(head)
    if count > SAMPLED_ROWS:
        seen = sum(len(json.dumps(row.value, ensure_ascii=False, default=str).encode()) for row in head)
        # A row is not held to be shorter in the file than it is as JSON: a plan's steps are an upper bound.
        count = max(count, round(count * path.stat().st_size / max(1, seen)))
    if section.max_rows is not None:
        count = min(count, section.max_rows)
    trained = max(1, round(count * (1 - section.holdout_fraction)))
    per_row = report.tokens / max(1, report.rows)
    longest = report.longest if len(head) <= SAMPLED_ROWS else LONGER_ROWS * report.longest
    words = f"{path.name}: {row_format} format, about {count:,} rows"
    summary = DataSummary(trained, round(trained * per_row), longest, row_format)
    runs = highlight_sample(tokenized.rows[0], tokenizer)
    return DataSample(
        words, report.template, tuple(runs), _end_of_turn(report), summary, round((count - trained) * per_row)
    )


def check_held_out(sample: DataSample, base: int, context: int) -> None:
    """Refuse before the run what its measurements would refuse in the middle of it.

    A run that keeps the base context can be measured in shorter windows; a longer one cannot.

    Raises:
        EmptyDataError: too little held-out text for documents of `context` tokens.
    """
    needed = MIN_DOCUMENTS * (SHORTEST_WINDOW if context == base else context)
    if sample.held_out_tokens < needed:
        raise EmptyDataError(
            f"about {sample.held_out_tokens:,} held-out tokens to measure a context of {context:,} on",
            f"at least {needed:,}: {MIN_DOCUMENTS} documents of that length",
            "give more data or a dataset.text_file, raise dataset.holdout_fraction, or lower the target",
        )


def _held_out_tokens(dataset: Dataset, tokenizer: Any, report: TokenReport) -> int:
    if not dataset.held_out_texts:
        return round(len(dataset.held_out) * report.tokens / max(1, report.rows))
    head = dataset.held_out_texts[0][:MEASURED_CHARACTERS]
    per_character = len(tokenizer(head, add_special_tokens=False).input_ids) / max(1, len(head))
    return round(sum(len(text) for text in dataset.held_out_texts) * per_character)


def _end_of_turn(report: TokenReport) -> str:
    if report.end_of_turn_trained is None:
        return "not a conversation"
    if report.end_of_turn_trained:
        return f"yes ({report.end_of_turn})"
    return f"no ({report.turns - report.turns_with_end} of {report.turns} turns do not end in one)"
