from __future__ import annotations

import math
import re
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch

from scaler_wizard.errors import EmptyDataError
from scaler_wizard.evals.documents import last_window, prefix_ids, windows
from scaler_wizard.evals.fakes import InductionModel
from scaler_wizard.evals.nll import base_window_losses, same_target_nll, short_context_nll
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.models.tiny import tiny_model, tiny_tokenizer

SETTINGS = ProbeSettings(base_length=32, length=64, documents=6, target_tokens=8, position_bins=4)


def losses(model: Any, row: list[int], count: int) -> list[float]:
    with torch.no_grad():
        logprob_TV = model(input_ids=torch.tensor([row])).logits[0].float().log_softmax(-1)
    return [-float(logprob_TV[p - 1, row[p]]) for p in range(len(row) - count, len(row))]


def test_same_targets_under_two_windows_by_hand(texts: list[str]) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    found = same_target_nll(model, tokenizer, texts, SETTINGS)
    rows = windows(tokenizer, texts, 64, SETTINGS)
    full = [fmean(losses(model, row, 8)) for row in rows]
    short = [fmean(losses(model, row[-32:], 8)) for row in rows]
    assert found.n == 6
    assert found.per_document == pytest.approx(full, abs=1e-4)
    assert found.per_document_base == pytest.approx(short, abs=1e-4)
    assert found.value == pytest.approx(fmean(full) - fmean(short), abs=1e-4)
    assert found.ci95[0] < found.value < found.ci95[1]
    assert found.perplexity == pytest.approx(math.exp(fmean(full)), rel=1e-4)
    recent = [fmean(losses(model, row, 2)) - fmean(losses(model, row[-32:], 2)) for row in rows]
    assert found.recent_difference.mean == pytest.approx(fmean(recent), abs=1e-4)


def test_nll_by_position_covers_every_position_once(texts: list[str]) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    found = same_target_nll(model, tokenizer, texts, SETTINGS)
    assert [(b.start, b.end) for b in found.by_position] == [(0, 16), (16, 32), (32, 48), (48, 64)]
    assert [b.n for b in found.by_position] == [6 * 15, 6 * 16, 6 * 16, 6 * 16]
    rows = windows(tokenizer, texts, 64, SETTINGS)
    last = fmean(loss for row in rows for loss in losses(model, row, 16))
    assert found.by_position[-1].nll == pytest.approx(last, abs=1e-4)
    few = same_target_nll(model, tokenizer, texts, replace(SETTINGS, positions_per_document=16))
    assert few.per_document == pytest.approx(found.per_document, abs=1e-5)
    assert sum(b.n for b in few.by_position) <= 6 * 16


def test_more_context_helps_a_model_that_reads(tokenizer: Any) -> None:
    # Every word comes twice, 100 tokens apart: beyond the base window, within the length.
    words = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    text = " ".join(words * 40)
    settings = ProbeSettings(base_length=64, length=512, documents=4, target_tokens=16)
    found = same_target_nll(InductionModel(len(tokenizer), n=8), tokenizer, [text], settings)
    assert found.value < -1
    assert found.ci95[1] < 0


def test_the_reference_may_come_from_another_model(texts: list[str]) -> None:
    base, other, tokenizer = tiny_model(seed=0), tiny_model(seed=1), tiny_tokenizer()
    reference = base_window_losses(base, tokenizer, texts, SETTINGS)
    found = same_target_nll(other, tokenizer, texts, SETTINGS, reference=reference)
    own = same_target_nll(base, tokenizer, texts, SETTINGS)
    assert found.per_document_base == own.per_document_base
    assert found.per_document != own.per_document


def test_at_the_base_length_nothing_differs(texts: list[str]) -> None:
    found = same_target_nll(tiny_model(), tiny_tokenizer(), texts, SETTINGS.at(32))
    assert found.value == pytest.approx(0, abs=1e-5)


def test_short_context_nll_by_hand(texts: list[str]) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    found = short_context_nll(model, tokenizer, texts, SETTINGS)
    rows = windows(tokenizer, texts, 32, SETTINGS)
    assert found.value == pytest.approx(fmean(fmean(losses(model, row, 31)) for row in rows), abs=1e-4)
    assert found.chance == pytest.approx(math.log(262))
    assert found.perplexity_ci95[0] < found.perplexity < found.perplexity_ci95[1]


def test_a_broken_model_gives_no_number_and_no_error(texts: list[str]) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    found = same_target_nll(model, tiny_tokenizer(), texts, SETTINGS)
    assert math.isnan(found.value)
    assert found.as_dict()["value"] is None


def test_windows_are_exact_do_not_overlap_and_spread_over_the_texts(texts: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    numbered = ["".join(f"{t}:{i:04d} " for i in range(400)) for t in range(3)]
    found = windows(tokenizer, numbered, 64, replace(SETTINGS, documents=9))
    assert [len(row) for row in found] == [64] * 9
    assert len({tuple(row) for row in found}) == 9
    source = [re.findall(r"(\d):", tokenizer.decode(row)) for row in found]
    assert sorted("".join(sorted(set(marks))) for marks in source) == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    assert windows(tokenizer, numbered, 64, replace(SETTINGS, documents=9)) == found
    short = windows(tokenizer, ["word " * 30] * 10, 64, replace(SETTINGS, documents=9))
    assert len(short) == 9
    with pytest.raises(EmptyDataError, match="windows of 64 tokens"):
        windows(tokenizer, ["too short"], 64, SETTINGS)


def test_a_special_prefix_stays_in_front_of_every_window() -> None:
    class Marked:
        """Adds a begin-of-sequence token, as Llama's tokenizer does."""

        def encode(self, text: str, *, add_special_tokens: bool = True, **_: Any) -> list[int]:
            return ([1] if add_special_tokens else []) + [10 + ord(c) % 50 for c in text]

    tokenizer: Any = Marked()
    assert prefix_ids(tokenizer) == (1,)
    found = windows(tokenizer, ["some text " * 60], 64, replace(SETTINGS, documents=4))
    assert all(row[0] == 1 and len(row) == 64 for row in found)
    cut = last_window(found[0], 32, (1,))
    assert len(cut) == 32
    assert (cut[0], cut[1:]) == (1, found[0][-31:])
