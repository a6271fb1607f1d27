from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scaler_wizard.errors import EmptyDataError, IncompatibleModelError
from scaler_wizard.evals.fakes import InductionModel, OracleModel, RandomModel
from scaler_wizard.evals.multi_key import multi_key_items, multi_key_probe
from scaler_wizard.evals.needle import needle_items, needle_probe
from scaler_wizard.evals.recency import recency_items, recency_probe
from scaler_wizard.evals.retention import context_retention
from scaler_wizard.evals.retrieval import choose_statements, uses_generated_world
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.evals.statistics import wilson_interval
from scaler_wizard.models.tiny import tiny_tokenizer

SETTINGS = ProbeSettings(base_length=128, length=256, needles_per_depth=8, target_tokens=16)
PROBES = {
    "needle": (needle_items, needle_probe),
    "multi_key": (multi_key_items, multi_key_probe),
    "recency": (recency_items, recency_probe),
}
STYLES: Any = ["generated", "documents"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", PROBES)
def test_oracle_scores_one_and_random_scores_chance(
    name: str, style: Any, tokenizer: Any, texts: list[str]
) -> None:
    build, probe = PROBES[name]
    settings = replace(SETTINGS, style=style)
    items, values = build(tokenizer, texts, settings)
    oracle = OracleModel(len(tokenizer), {item.prompt: item.answer for item in items})
    found = probe(oracle, tokenizer, texts, settings)
    assert found.value == 1.0
    assert found.informative
    assert found.chance == 1 / len(values)

    more = replace(settings, scoring="choices", needles_per_depth=24)
    guesses = probe(RandomModel(len(tokenizer)), tokenizer, texts, more)
    assert guesses.n == 3 * len(items)
    low, high = wilson_interval(guesses.pooled.correct, guesses.n, 0.999)
    assert low <= guesses.chance <= high
    assert not guesses.informative


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", PROBES)
def test_prompts_have_their_length_hold_their_answer_and_repeat(
    name: str, style: Any, tokenizer: Any, texts: list[str]
) -> None:
    build, _ = PROBES[name]
    settings = replace(SETTINGS, style=style)
    items, _ = build(tokenizer, texts, settings)
    assert items == build(tokenizer, texts, settings)[0]
    assert items != build(tokenizer, texts, replace(settings, seed=1))[0]
    for item in items:
        size = len(item.prompt) + len(item.answer)
        assert size <= settings.length
        assert size == settings.length or style == "generated"
        assert size > settings.length - 24
        statement = tokenizer.decode(item.prompt[len(item.prompt) - item.distance :])
        assert (
            tokenizer.decode(item.answer).strip()
            in statement.split("\n", 2)[0 if style == "generated" else 1]
        )


@pytest.mark.parametrize("style", STYLES)
def test_a_reader_finds_what_its_window_shows_and_truncation_loses_the_rest(
    style: Any, tokenizer: Any, texts: list[str]
) -> None:
    settings = replace(SETTINGS, style=style)
    reader = InductionModel(len(tokenizer))
    found = needle_probe(reader, tokenizer, texts, settings)
    assert found.value == 1.0
    assert [depth.accuracy.accuracy for depth in found.by_depth] == [1.0] * 5
    assert found.beyond.n >= 16
    assert found.beyond.accuracy == 1.0
    assert found.truncated_beyond.n == found.beyond.n
    assert found.truncated_beyond.correct == 0
    assert found.baseline == pytest.approx(1 - found.beyond.n / found.n, abs=0.1)

    at_base = needle_probe(reader, tokenizer, texts, settings.at(128))
    assert at_base.beyond.n == 0
    kept = context_retention(at_base, found)
    assert (kept.value, kept.baseline) == (1.0, 0.0)
    assert context_retention(at_base, at_base).value is None


@pytest.mark.parametrize("style", STYLES)
def test_recency_tells_the_last_value_from_the_first(style: Any, tokenizer: Any, texts: list[str]) -> None:
    settings = replace(SETTINGS, style=style)
    last = recency_probe(InductionModel(len(tokenizer), prefer="last"), tokenizer, texts, settings)
    first = recency_probe(InductionModel(len(tokenizer), prefer="first"), tokenizer, texts, settings)
    assert (last.value, last.stale.accuracy) == (1.0, 0.0)
    assert (first.value, first.stale.accuracy) == (0.0, 1.0)
    assert last.baseline == 0.5


def test_multi_key_counts_answers_of_the_wrong_key(tokenizer: Any, texts: list[str]) -> None:
    settings = replace(SETTINGS, style="documents")
    # One token of context ("is", the end of every statement) cannot tell the keys apart.
    found = multi_key_probe(InductionModel(len(tokenizer), n=1), tokenizer, texts, settings)
    assert found.value < 0.5
    assert found.other_key.accuracy == pytest.approx(1 - found.value)


def test_words_of_several_tokens_are_scored_whole(texts: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    assert not uses_generated_world(tokenizer, SETTINGS)
    assert not choose_statements(tokenizer).single_token
    settings = replace(SETTINGS, length=400, base_length=200)
    items, values = needle_items(tokenizer, texts, settings)
    assert min(map(len, values)) > 1
    oracle = OracleModel(len(tokenizer), {item.prompt: item.answer for item in items})
    assert needle_probe(oracle, tokenizer, texts, settings).value == 1.0
    half = OracleModel(len(tokenizer), {item.prompt: item.answer[:-1] for item in items})
    assert needle_probe(half, tokenizer, texts, settings).value == 0.0


def test_auto_style_follows_the_tokenizer(tokenizer: Any) -> None:
    assert uses_generated_world(tokenizer, SETTINGS)


def test_empty_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(EmptyDataError, match="held-out text is empty"):
        needle_items(tokenizer, ["", " "], replace(SETTINGS, style="documents"))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", PROBES)
def test_a_context_too_short_for_the_question_is_refused(
    name: str, style: Any, tokenizer: Any, texts: list[str]
) -> None:
    small = ProbeSettings(base_length=16, length=16, target_tokens=4, style=style, keys=6, updates=4)
    if name == "needle" and style == "generated":
        tokenizer = tiny_tokenizer()  # one token a byte, so that even one fact is too long
    with pytest.raises(IncompatibleModelError, match="16 tokens cannot hold"):
        PROBES[name][0](tokenizer, texts, small)


def test_result_is_json_ready(tokenizer: Any, texts: list[str]) -> None:
    record = needle_probe(RandomModel(len(tokenizer)), tokenizer, texts, SETTINGS).as_dict()
    assert record["probe"] == "needle"
    assert {"value", "n", "ci95", "baseline", "chance", "seed"} <= record.keys()
    assert record["by_depth"][0]["accuracy"]["n"] == 8
