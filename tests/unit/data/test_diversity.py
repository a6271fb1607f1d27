"""Made tasks are different ones: measured on what the embedded model writes, warm and nearly frozen."""

from __future__ import annotations

import random
from functools import cache
from string import ascii_lowercase

import pytest
import torch

from scaler_wizard.data.diversity import Diversity, KindAndText, MadeTasks, count_close
from scaler_wizard.data.generation_gates import Generated, judge_generation, known_prompts
from scaler_wizard.data.world_embedded import EmbeddedWorld
from scaler_wizard.inference.generate import generate
from scaler_wizard.inference.requests import Request, sample_seed
from scaler_wizard.models.load import load_model

KINDS = ("copy", "reverse")
EACH = 100


@cache
def written(temperature: float) -> tuple[KindAndText, ...]:
    """Tasks that the embedded base writes when a document begins "reverse [": real samples."""
    loaded = load_model("seedling", dtype=torch.float32, device="cpu")
    tokenizer = loaded.tokenizer
    stops = frozenset({tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["\n"])})
    asked = [(kind, number) for kind in KINDS for number in range(EACH)]
    requests = [
        Request(
            tuple(tokenizer.encode(f"{kind} [")),
            12,
            stops,
            temperature,
            sample_seed(0, f"{kind}/{number}", 1),
        )
        for kind, number in asked
    ]
    found = generate(loaded.model, requests)
    texts = [tokenizer.decode(list(one.tokens), skip_special_tokens=True).partition("]")[0] for one in found]
    return tuple((kind, f"{kind} [{text}") for (kind, _), text in zip(asked, texts, strict=True))


@cache
def own() -> tuple[KindAndText, ...]:
    """What the world has by itself, as the base writes it."""
    tasks = EmbeddedWorld(KINDS).tasks("train", 8 * EACH, seed=5)
    return tuple((task.type, task.document.partition("]")[0]) for task in tasks)


def judged(made: tuple[KindAndText, ...]) -> dict[str, bool]:
    """Which of the gates on tasks let them pass."""
    rows = [
        Generated("Make a task.", text, f"{number} {text}", True, True)
        for number, (_, text) in enumerate(made)
    ]
    report = judge_generation(rows, known_prompts([]), tasks=MadeTasks(2 * EACH, made, own()))
    assert report.shares["close_tasks"] == MadeTasks(2 * EACH, made, own()).diversity().close
    return {name: report.verdict.checks[name].ok for name in ("different_tasks", "close_tasks")}


def test_what_a_warm_generator_makes_is_as_varied_as_the_world() -> None:
    assert judged(written(0.7)) == {"different_tasks": True, "close_tasks": True}


def test_a_collapsed_generator_is_refused_though_no_task_repeats_another() -> None:
    """At a temperature of 0.2: of 200 tasks 199 differ, and half are one letter from another."""
    collapsed = MadeTasks(2 * EACH, written(0.2), own()).diversity()
    assert collapsed.share_different > 0.95
    assert judged(written(0.2)) == {"different_tasks": True, "close_tasks": False}


def test_the_same_few_tasks_again_and_again_are_refused() -> None:
    few = written(0.7)[: EACH // 2] * 4
    assert judged(few)["different_tasks"] is False


def test_a_pilot_of_a_collapsed_generator_is_refused() -> None:
    """Forty tasks about ten inputs; of forty tasks of the world hardly one is close by chance."""
    texts = [("copy", f"copy [ {a} {b} {c}") for a in "abcde" for b in "xy" for c in "klmn"]
    found = MadeTasks(40, texts, own()).diversity()
    assert found.by_chance < 0.2
    assert found.close > found.most_close(0.5, 0.1)


def test_where_nothing_is_close_by_chance_the_plain_limit_holds() -> None:
    found = Diversity(1000, 1000, 1000, close=0.2, by_chance=0.0)
    assert found.most_close(0.5, 0.1) == pytest.approx(0.1 + 2 * (0.09 / 1000) ** 0.5)


@pytest.mark.parametrize(("letters", "passes"), [(26, True), (22, True), (12, False), (6, False)])
def test_less_than_half_of_the_worlds_variety_is_too_little(letters: int, passes: bool) -> None:
    """Two tasks drawn from n letters are close with a probability of about 3 / n^2: half of it at n = 18."""
    rng = random.Random(0)

    def drawn(n: int, count: int) -> list[KindAndText]:
        texts = (" ".join(rng.sample(ascii_lowercase[:n], 3)) for _ in range(count))
        return [("k", text) for text in texts]

    found = MadeTasks(100, drawn(letters, 100), drawn(26, 2000)).diversity()
    assert (found.close < found.most_close(0.5, 0.1)) is passes, found


@pytest.mark.parametrize(
    ("texts", "close"),
    [
        (["Reverse: a b c", "Reverse: a b d"], 1), (["Reverse: a b c", "reverse: A b c d"], 1),
        (["Reverse: a b c", "Reverse: a b"], 1), (["Reverse: a b c", "Reverse: b a c"], 1),
        (["Reverse: a b c", "Reverse: a d e"], 0), (["Reverse: a b c", "Copy: d b c"], 0),
        (["Reverse: a b c", "Copy: x y z", "Reverse: a b z", "Reverse: a y z"], 2),
        ([], 0),
    ],
)  # fmt: skip
def test_one_word_apart(texts: list[str], close: int) -> None:
    assert count_close(texts) == close


def test_long_texts_are_compared_by_their_shingles() -> None:
    words = [f"word{number}" for number in range(80)]
    changed = [*words[:40], "another", "two", *words[42:]]
    other = [f"other{number}" for number in range(80)]
    assert count_close([" ".join(words), " ".join(other), " ".join(changed)]) == 1


def test_kinds_without_tasks_of_their_own_are_compared_all_the_same() -> None:
    found = MadeTasks(2, [("new", "a b c"), ("new", "a b d")], []).diversity()
    assert (found.close, found.by_chance) == (0.5, 0.0)
    assert MadeTasks(5, [("k", " "), ("k", "")], []).diversity() == Diversity(5, 0, 0, 0.0, 0.0)
