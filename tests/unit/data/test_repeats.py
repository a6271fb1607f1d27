"""Repeats and near repeats among more keys than are held at a time; signatures, lengths, quarantine."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.data.fingerprints import fingerprint, signature, similarity
from scaler_wizard.data.lengths import Lengths
from scaler_wizard.data.near import KnownTexts, NearDuplicates
from scaler_wizard.data.quarantine import Quarantine
from scaler_wizard.data.repeats import RepeatFinder
from scaler_wizard.data.rows import BadRow


@given(st.lists(st.integers(0, 12) | st.integers(0, 2**64 - 1), max_size=60), st.integers(1, 20))
def test_every_repeat_is_reported_once_however_little_is_held(keys: list[int], held: int) -> None:
    found: list[tuple[int, int]] = []
    with RepeatFinder(lambda number, first: found.append((number, first)), held_keys=held) as finder:
        for number, key in enumerate(keys):
            finder.add(key, number)
        finder.finish()
    assert sorted(number for number, _ in found) == [n for n, key in enumerate(keys) if key in keys[:n]]
    assert all(keys[number] == keys[first] and first < number for number, first in found)


def words(seed: int, count: int = 60) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghij", k=5)) for _ in range(count)]


@pytest.mark.parametrize("held", [8, 1 << 18])
def test_near_duplicates_are_found_and_only_they(held: int) -> None:
    texts = [" ".join(words(seed)) for seed in range(40)]
    changed = words(7)
    changed[30] = "xxxxx"
    texts.append(" ".join(changed))
    texts.append(texts[3])
    found: list[tuple[int, int]] = []
    with NearDuplicates(lambda number, first: found.append((number, first)), held_keys=held) as near:
        for number, text in enumerate(texts, start=1):
            near.add(number, fingerprint(text), signature(text))
        near.finish()
    # Row 41 is like row 8; row 42 equals row 4, which is not near but the same.
    assert found == [(41, 8)]


def test_similarity_estimates_jaccard() -> None:
    for kept in (0.95, 0.8, 0.5):
        estimates = []
        for seed in range(30):
            first = words(seed, 200)
            second = first[: int(200 * kept)] + words(1000 + seed, 200 - int(200 * kept))
            estimates.append(similarity(signature(" ".join(first)), signature(" ".join(second))))
        # Kept words are about kept / (2 - kept) of all shingles; the error of 30 estimates is below 0.012.
        assert sum(estimates) / 30 == pytest.approx(kept / (2 - kept), abs=0.05)
    assert similarity(signature(""), signature("")) == 1.0
    assert similarity(signature("a b  C"), signature(" A b c ")) == 1.0


def test_known_texts() -> None:
    known = KnownTexts(near=True)
    text = " ".join(words(1))
    known.add(fingerprint(text), text)
    assert known.holds(fingerprint(text))
    assert not known.holds(fingerprint("other"))
    assert known.resembles(signature(text + " more"))
    assert not known.resembles(signature(" ".join(words(2))))


def test_fingerprints_part_texts_and_ignore_white_space() -> None:
    assert fingerprint("a", "bc") != fingerprint("ab", "c")
    assert fingerprint("a  b\n") == fingerprint("a b")


@given(st.lists(st.integers(0, 1 << 22), min_size=1, max_size=200))
def test_percentiles_are_exact_to_one_percent(values: list[int]) -> None:
    lengths = Lengths("tokens")
    for value in values:
        lengths.add(value)
    summary = lengths.summary()
    assert summary is not None
    ranked = sorted(values)
    for share, found in summary.percentiles.items():
        exact = ranked[-(-share * len(ranked) // 100) - 1]
        assert exact <= found <= 1.011 * exact + 1
    assert sum(rows for _, rows in summary.bars) == len(values)


def test_quarantine_file_is_bounded_and_says_what_it_left_out(tmp_path: Path) -> None:
    path = tmp_path / "aside.jsonl"
    with Quarantine(path, max_bytes=2000) as store:
        for number in range(1, 101):
            store.add(BadRow(number, "json", "not JSON", b"x" * 100, False))
        assert not path.exists()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [record for record in records if record["line"]]
    assert [record["line"] for record in kept] == list(range(1, len(kept) + 1))
    assert 5 < len(kept) < 20
    assert records[-1]["reason"].startswith(f"{100 - len(kept)} more bad lines")
