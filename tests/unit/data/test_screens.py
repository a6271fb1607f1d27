"""Drawn screens: exact answers, one screen on one side of the split, reproducible pixels."""

from __future__ import annotations

import random
import re

import pytest

from scaler_wizard.data.generators.screen_documents import screen_document, screen_words
from scaler_wizard.data.generators.screens import (
    COLOURS,
    PLACES,
    SCREEN_SKILLS,
    Item,
    Screen,
    describe,
    draw_screen,
    held_out_screen,
    sample_screen,
    sample_screen_example,
    screen_png,
)
from scaler_wizard.data.images import read_image

SCREEN = Screen(
    (
        Item("box", "red", False, False, (0, 0)),
        None,
        Item("button", "blue", False, False, (1, 1)),
        Item("box", "green", True, False, (0, 0)),
        None,
        Item("cross", "yellow", False, True, (-1, 0)),
    ),
    40,
)


@pytest.mark.parametrize(
    ("skill", "answer"),
    [("colour", "blue"), ("count", "2"), ("place", "bottom right"), ("biggest", "green box")],
)
def test_answers_follow_from_the_screen(skill: str, answer: str) -> None:
    assert SCREEN_SKILLS[skill].answer(SCREEN) == answer


@pytest.mark.parametrize("skill", SCREEN_SKILLS)
def test_a_seed_names_one_screen_for_every_skill(skill: str) -> None:
    for seed in range(30):
        for split in ("train", "held_out"):
            example = sample_screen_example(skill, seed, split=split)
            assert example.screen == sample_screen(seed, split=split)
            assert example == sample_screen_example(skill, seed, split=split)
            assert held_out_screen(example.screen) == (split == "held_out")


def test_an_answer_is_its_first_line() -> None:
    example = sample_screen_example("place", 1, split="train")
    assert example.verify(f" {example.answer}<|im_end|>\nmore")
    assert example.verify(f"{example.answer}\nmore")
    assert not example.verify(f"{example.answer} or so")
    assert not example.verify("")


def test_pixels_show_what_the_screen_says() -> None:
    image = draw_screen(SCREEN)
    assert image.size == (96, 64)
    assert image.getpixel((16, 16)) == COLOURS["red"]
    assert image.getpixel((16, 48)) == COLOURS["green"]
    assert image.getpixel((16, 40)) == COLOURS["green"], "a big box reaches farther than"
    assert image.getpixel((16, 8)) == (40, 40, 40), "a small one"
    assert image.getpixel((64, 32)) == (255, 255, 255), "the frame of the marked item"
    assert read_image(screen_png(SCREEN)).image.tobytes() == image.tobytes()


def test_documents_say_what_is_there_and_ask_nothing() -> None:
    kinds = set()
    for seed in range(40):
        screen = sample_screen(seed, split="train")
        text = screen_document(random.Random(seed), screen)
        assert "?" not in text
        for entry in text.split("; "):
            word, sign, said = entry.split(" ", 2)
            items = [
                (at, item) for at, item in enumerate(screen.cells) if item and word in describe(item).split()
            ]
            kinds.add(sign)
            if sign == "x":
                assert int(said) == len(items)
                continue
            ((at, item),) = items
            assert said == (PLACES[at] if sign == "at" else f"{item.colour} {item.shape}")
    assert kinds == {"x", "at", "="}


def test_every_word_of_documents_and_questions_is_listed() -> None:
    words = set(screen_words())
    for seed in range(40):
        screen = sample_screen(seed, split="train")
        for text in (
            screen_document(random.Random(seed), screen),
            *(question for skill in SCREEN_SKILLS.values() for question in skill.questions),
        ):
            assert set(re.findall(r"[A-Za-z]+", text)) <= words


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="held_out"):
        sample_screen(0, split="test")
