"""Nothing that is alike stands on both sides of a split, whatever the rows are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler_wizard.data.fingerprints import SIMILAR, fingerprint, signature, similarity
from scaler_wizard.data.routing_groups import distinguishing, group_rows
from scaler_wizard.data.routing_split import Split, SplitSizes, split_groups
from scaler_wizard.errors import EmptyDataError

WORDS = st.sampled_from(
    ["kettle", "lantern", "harbour", "violet", "seventeen", "morning", "copper", "orchard"]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=9).map(" ".join)
ROWS = st.lists(
    st.tuples(TEXTS, st.sampled_from([None, "a" * 64, "b" * 64, "c" * 64]), st.sampled_from(["x", "y"])),
    min_size=2, max_size=40,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(ROWS, st.integers(0, 5))
def test_no_group_stands_in_two_splits(rows: list[tuple[str, str | None, str]], seed: int) -> None:
    texts, images, labels = (list(column) for column in zip(*rows, strict=True))
    groups = group_rows(texts, images, labels)
    sizes = {label: SplitSizes(rows=6, test=2, val_share=0.3) for label in set(labels)}
    keys = [fingerprint(text, image or "") for text, image in zip(texts, images, strict=True)]
    try:
        splits = split_groups(groups, labels, keys, sizes, seed)
    except EmptyDataError:
        return
    sides: dict[int, set[Split]] = {}
    for group, split in zip(groups, splits, strict=True):
        if split is not None:
            sides.setdefault(group, set()).add(split)
    assert all(len(found) == 1 for found in sides.values())


@settings(max_examples=80, deadline=None)
@given(ROWS)
def test_rows_that_are_alike_or_share_an_image_are_one_group(rows: list[tuple[str, str | None, str]]) -> None:
    texts, images, labels = (list(column) for column in zip(*rows, strict=True))
    groups = group_rows(texts, images, labels)
    for one in range(len(rows)):
        for other in range(one):
            same_image = images[one] is not None and images[one] == images[other]
            same_text = images[one] is images[other] is None and texts[one] == texts[other]
            if same_image or same_text:
                assert groups[one] == groups[other]


def test_a_longer_text_with_one_word_changed_is_in_the_same_group() -> None:
    words = [f"word{number}" for number in range(30)]
    changed = [*words[:29], "other"]
    texts = [" ".join(words), " ".join(changed), "something else that has nothing in common at all"]
    assert similarity(signature(texts[0]), signature(texts[1])) >= SIMILAR
    groups = group_rows(texts, [None] * 3)
    assert groups[0] == groups[1] != groups[2]


def test_the_words_that_all_rows_of_a_source_share_do_not_make_them_alike() -> None:
    rows = [f"Please tell me the colour of the thing called {chr(65 + n)}{n:04d}" for n in range(60)]
    assert len(set(group_rows(rows, [None] * 60, ["one"] * 60))) == 60
    assert distinguishing(rows, ["one"] * 60)[0] == rows[0].split()[-1].casefold()


def sizes(test: int = 10, rows: int | None = None) -> dict[str, SplitSizes]:
    return {label: SplitSizes(rows, test, 0.2) for label in "ab"}


def test_numbers_are_exact_and_the_same_for_every_order_of_rows() -> None:
    labels = ["a"] * 60 + ["b"] * 40
    keys = [fingerprint(str(number)) for number in range(100)]
    splits = split_groups(list(range(100)), labels, keys, sizes(), seed=1)
    count = {(label, split): 0 for label in "ab" for split in ("train", "val", "test")}
    for label, split in zip(labels, splits, strict=True):
        assert split is not None
        count[label, split] += 1
    assert [count["a", split] for split in ("train", "val", "test")] == [40, 10, 10]
    assert [count["b", split] for split in ("train", "val", "test")] == [24, 6, 10]
    backward = split_groups(list(range(100)), labels[::-1], keys[::-1], sizes(), seed=1)
    assert backward[::-1] == splits
    assert split_groups(list(range(100)), labels, keys, sizes(), seed=2) != splits


def test_rows_beyond_the_wanted_number_are_left_out() -> None:
    splits = split_groups(list(range(100)), ["a", "b"] * 50, [7 * n for n in range(100)], sizes(rows=20), 0)
    assert splits.count(None) == 100 - 2 * 30


def test_rows_that_are_all_alike_cannot_be_split_and_are_told_so() -> None:
    with pytest.raises(EmptyDataError, match=r'expert "a".*kept together'):
        split_groups([0] * 50 + list(range(50, 100)), ["a"] * 50 + ["b"] * 50, list(range(100)), sizes(), 0)
