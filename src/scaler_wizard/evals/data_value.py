"""How much a file would teach a model: its loss on the answers before, and after a few probe steps.

Half of a sample is trained on with a LoRA adapter that is thrown away; the other half is measured before and
after, so that what is counted carries over to rows that were not trained on. As a process,

    python -m scaler_wizard.evals.data_value --model M --data F

prints one JSON object. What the whole file teaches is usually more: the probe sees a few dozen rows.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from scaler_wizard.data.batches import Batches
from scaler_wizard.data.formats import RowFormat, detect_format
from scaler_wizard.data.readers import read_rows
from scaler_wizard.data.rows import BadRows, Row
from scaler_wizard.data.split import row_position
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.tokens import tokenize_rows
from scaler_wizard.errors import EmptyDataError, ScalerError
from scaler_wizard.evals.statistics import Interval, bootstrap_interval
from scaler_wizard.inference.scoring import score_positions
from scaler_wizard.models.adapters import attach_lora
from scaler_wizard.models.load import load_model
from scaler_wizard.training.forward import check_head, make_objective
from scaler_wizard.training.loop import TrainSettings, train

LEAST_ROWS = 8
VERY_LONG = 1 << 40


@dataclass(frozen=True, slots=True)
class ValueSettings:
    """How the probe is made."""

    rows: int = 64
    """Sampled rows; half of them are trained on."""
    steps: int = 16
    """Optimiser steps of the probe."""
    learning_rate: float = 1e-3
    rank: int = 8
    seed: int = 0
    context: int | None = None
    """Longest piece of a row in tokens; the model's context when None."""


@dataclass(frozen=True, slots=True)
class DataValue:
    """Losses are mean nats per answer token, averaged over rows; intervals bootstrap the rows, 95%."""

    rows: int
    """Rows measured: the half that was not trained on."""
    before: float
    before_ci95: Interval
    after: float
    after_ci95: Interval
    gain: float
    """before - after, of the same rows."""
    gain_ci95: Interval
    steps: int
    trained_rows: int
    quarantined: int

    @property
    def teaches(self) -> bool:
        """Whether the gain is above zero with 95% confidence."""
        return self.gain_ci95[0] > 0

    def words(self) -> str:
        """Two sentences for a person."""
        low, high = self.gain_ci95
        loss = (
            f"loss on {self.rows} unseen rows of this file: {self.before:.3f} before, {self.after:.3f} after "
            f"{self.steps} probe steps on {self.trained_rows} others; gain {self.gain:.3f} nats per token "
            f"(95% {low:.3f} to {high:.3f})"
        )
        verdict = "it would teach something" if self.teaches else "nothing that carries over was shown"
        return f"{verdict}: {loss}"


def data_value(model: Any, tokenizer: Any, rows: Sequence[Row], settings: ValueSettings) -> DataValue:
    """Measure, probe, measure again. An adapter is attached to `model` and stays: load it for this alone.

    rows: in one format; tokenised with the chat template, or as plain text.

    Raises:
        EmptyDataError: fewer than eight usable rows. FormatError: see `detect_format`.
    """
    row_format: RowFormat = detect_format(rows, "the sample")
    context = settings.context or int(model.config.max_position_embeddings)
    bad = BadRows("quarantine")
    tokenized = tokenize_rows(
        rows, row_format, tokenizer, context=context, bad_rows=bad, source="the sample"
    ).rows
    pieces: dict[int, list[TokenRow]] = {}
    for piece in tokenized:
        if piece.n_labels:
            pieces.setdefault(piece.number, []).append(piece)
    if len(pieces) < LEAST_ROWS:
        raise EmptyDataError(
            f"{len(pieces)} usable rows", f"at least {LEAST_ROWS}, to train on half and measure the other",
            "give a larger file, or raise --sample",
        )  # fmt: skip
    numbers = sorted(pieces)
    probe = [piece for number in numbers[::2] for piece in pieces[number]]
    held = [pieces[number] for number in numbers[1::2]]
    before = response_losses(model, held)
    after = response_losses(_probed(model, probe, context, settings), held)
    gains = [b - a for b, a in zip(before, after, strict=True)]
    seed = settings.seed
    return DataValue(
        rows=len(held), before=fmean(before), before_ci95=bootstrap_interval(before, seed=seed),
        after=fmean(after), after_ci95=bootstrap_interval(after, seed=seed), gain=fmean(gains),
        gain_ci95=bootstrap_interval(gains, seed=seed), steps=settings.steps,
        trained_rows=len(numbers[::2]), quarantined=bad.count,
    )  # fmt: skip


def response_losses(model: Any, rows: Sequence[Sequence[TokenRow]]) -> list[float]:
    """Mean NLL (nats) of the trained tokens of every row, given as its pieces."""
    pieces = [piece for row in rows for piece in row]
    positions = [[at for at in range(1, len(piece.ids)) if piece.trained[at]] for piece in pieces]
    scores = iter(score_positions(model, [piece.ids.tolist() for piece in pieces], positions))
    return [-fmean(value for _ in row for value in next(scores).logprobs) for row in rows]


def _probed(model: Any, rows: Sequence[TokenRow], context: int, settings: ValueSettings) -> Any:
    check_head(model)
    adapted = attach_lora(model, rank=settings.rank, alpha=2.0 * settings.rank, seed=settings.seed)
    tokens = sum(len(row.ids) for row in rows)
    batches = Batches(
        rows, context=context, batch_tokens=max(256, tokens // 4), micro_batch_tokens=max(512, context),
        seed=settings.seed,
    )  # fmt: skip
    plan = TrainSettings(total_steps=settings.steps, learning_rate=settings.learning_rate, seed=settings.seed)
    device = next(model.parameters()).device
    for _ in train(adapted, batches, make_objective("sft"), plan, device=device):
        pass
    adapted.eval()
    return adapted


def sample_rows(path: Path, count: int, seed: int) -> list[Row]:
    """`count` rows of a file, uniform over contents and independent of their order; streamed.

    Raises:
        DataError: see `readers`.
    """
    keyed = (
        (-row_position(row, seed), -row.number, row)
        for row in read_rows(path, bad_rows=BadRows("quarantine"))
    )
    kept: list[tuple[float, int, Row]] = []
    for item in keyed:
        if len(kept) < count:
            heapq.heappush(kept, item)
        else:
            heapq.heappushpop(kept, item)
    return sorted((row for _, _, row in kept), key=lambda row: row.number)


def main(argv: list[str] | None = None) -> int:
    """The process: JSON on the last line of standard output, an error of ours as JSON too."""
    defaults = ValueSettings()
    parser = argparse.ArgumentParser(prog="scaler-data-value")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sample", type=int, default=defaults.rows)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    transformers_logging.disable_progress_bar()
    settings = ValueSettings(options.sample, options.steps, options.learning_rate, seed=options.seed)
    try:
        rows = sample_rows(options.data, settings.rows, settings.seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        loaded = load_model(options.model, dtype=dtype, device=device)
        # Texts are tokenised whole and cut by us; the tokenizer's own limit would only warn.
        loaded.tokenizer.model_max_length = VERY_LONG
        found = data_value(loaded.model, loaded.tokenizer, rows, settings)
    except ScalerError as error:
        print(json.dumps(error.as_dict()))
        return error.exit_code
    print(json.dumps(asdict(found) | {"teaches": found.teaches, "words": found.words()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
