"""Data profiles: what they write, that content and seed alone decide it, and that nothing else changes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.data.formats import Message
from scaler_wizard.data.profiles import PROFILES, find_profile
from scaler_wizard.data.profiles.emoji_think import STOP_EMOJIS, THINK_EMOJIS
from scaler_wizard.data.profiles.regime3 import marked_answer
from scaler_wizard.errors import RowError, SpecError

EMOJI = PROFILES["emoji_think"]
REGIME3 = PROFILES["regime3"]


def talk(question: str, answer: str) -> tuple[Message, ...]:
    return (Message("system", "be brief"), Message("user", question), Message("assistant", answer))


def test_registry_names_its_profiles() -> None:
    assert set(PROFILES) == {"none", "emoji_think", "regime3"}
    assert all(name == profile.name and profile.summary for name, profile in PROFILES.items())
    assert PROFILES["none"].apply(talk("a", "<think>b</think>c"), 3) == talk("a", "<think>b</think>c")
    assert PROFILES["none"].instructions == ""
    assert find_profile("regime3") is REGIME3
    with pytest.raises(SpecError, match="one of none, emoji_think, regime3"):
        find_profile("regime4")


@given(st.integers(), st.text(min_size=1).filter(str.strip).filter(lambda text: "<think>" not in text))
def test_emojis_stand_around_the_answer_in_the_right_numbers(seed: int, answer: str) -> None:
    said = EMOJI.apply(talk("a question", answer), seed)
    think, stop = "|".join(THINK_EMOJIS), "|".join(STOP_EMOJIS)
    match = re.fullmatch(
        rf"((?:{think}){{2,8}}) {re.escape(answer.strip())} ((?:{stop}){{2,4}})", said[2].content
    )
    assert match
    assert said[0] == Message("system", "be brief")
    assert said[1].content == f"a question\n\n{EMOJI.instructions}"
    assert said == EMOJI.apply(talk("a question", answer), seed)


def test_draws_differ_by_row_and_by_seed_and_cover_the_ranges() -> None:
    answers = [EMOJI.apply(talk(f"q{n}", "x"), 0)[2].content for n in range(400)]
    counts = {(len(a.split(" x ")[0]), len(a.split(" x ")[1])) for a in answers}
    assert counts == {(n, m) for n in range(2, 9) for m in range(2, 5)}
    again = [EMOJI.apply(talk(f"q{n}", "x"), 1)[2].content for n in range(400)]
    assert sum(a == b for a, b in zip(answers, again, strict=True)) < 20


def test_every_answered_turn_is_shaped() -> None:
    turns = (*talk("a", "b"), Message("user", "c"), Message("assistant", "<think>long</think> d"))
    said = EMOJI.apply(turns, 0)
    assert [turn.content.count(EMOJI.instructions) for turn in said] == [0, 1, 0, 1, 0]
    assert "long" not in said[4].content
    assert " d " in said[4].content


@pytest.mark.parametrize("thought", ["<think>a</think>", "<think>never closed", "<think></think>\n"])
def test_answer_of_thoughts_alone_is_an_error(thought: str) -> None:
    with pytest.raises(RowError, match="nothing but"):
        EMOJI.apply(talk("a", thought), 0)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("7", "<<ANS_START>>7<<ANS_END>>"),
        ("3 + 4 = 7\n#### 7", "3 + 4 = 7\n<<ANS_START>>7<<ANS_END>>"),
        ("48/2 = <<48/2=24>>24 clips\n#### 24", "48/2 = 24 clips\n<<ANS_START>>24<<ANS_END>>"),
        ("<think>3 + 4 = 7</think> 7", "3 + 4 = 7\n<<ANS_START>>7<<ANS_END>>"),
        ("so \\boxed{7}", "so \\boxed{7}\n<<ANS_START>>7<<ANS_END>>"),
        ("x\n<<ANS_START>> 7 <<ANS_END>>", "x\n<<ANS_START>>7<<ANS_END>>"),
        ("<<ANS_START>>6<<ANS_END>> no, <<ANS_START>>7<<ANS_END>>", "no,\n<<ANS_START>>7<<ANS_END>>"),
    ],
)
def test_regime3_puts_every_kind_of_answer_between_the_markers(answer: str, expected: str) -> None:
    said = REGIME3.apply(talk("q", answer), 0)
    assert said[2].content == expected
    assert REGIME3.instructions in said[1].content
    # Canonical: doing it again changes nothing.
    assert REGIME3.apply(talk("q", expected), 0)[2].content == expected


MARKS = (
    "<<ANS_START>>",
    "<<ANS_END>>",
    "<<ANS_",
    "START>>",
    "END>>",
    "<think>",
    "</think>",
    "#### ",
    "7",
    " ",
)


@given(st.text() | st.lists(st.sampled_from(MARKS), max_size=9).map("".join))
def test_regime3_gives_one_marked_answer_or_our_error(answer: str) -> None:
    try:
        content = REGIME3.apply(talk("q", answer), 0)[2].content
    except RowError:
        return
    assert content.count("<<ANS_START>>") == content.count("<<ANS_END>>") == 1
    assert marked_answer(content)


def test_marked_answer_needs_both_markers() -> None:
    assert marked_answer("x <<ANS_START>> 7 <<ANS_END>> y") == "7"
    assert marked_answer("<<ANS_START>>7") is None
