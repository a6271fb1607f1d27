"""The first rows of a job's data exactly as the model will see them, for `scaler plan`. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.data.dataset import Dataset, load_dataset
from scaler_wizard.data.tokens import TokenReport, highlight_sample, tokenize_rows
from scaler_wizard.errors import EmptyDataError, ModelError
from scaler_wizard.planning.plan import DataSummary
from scaler_wizard.specs.grow import GrowJob

SAMPLED_ROWS = 200
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
