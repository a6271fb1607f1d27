"""What is taken from an inbox, when, and what never: the pure decision, under a frozen clock."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.jobs.inbox import (
    Entry,
    EntryKind,
    Look,
    decide,
    file_name,
    is_unfinished,
    run_name,
    shown_name,
)
from scaler_wizard.store.names import SAFE_NAME

SETTLE = 2.0


def entry(path: str, size: int = 10, mtime_ns: int = 1, kind: EntryKind = "file") -> Entry:
    return Entry(path, kind, size, mtime_ns)


def look(
    entries: Collection[Entry],
    now: float,
    before: Look | None = None,
    known: Collection[str] = (),
) -> Look:
    return decide(entries, before.noticed if before else {}, known, now, SETTLE)


def taken(found: Look) -> list[str]:
    return [take.entry.path for take in found.take]


def test_a_file_is_taken_when_it_has_stood_still() -> None:
    first = look([entry("a.jsonl")], 100.0)
    assert taken(first) == []
    assert first.next_look == pytest.approx(SETTLE)
    assert taken(look([entry("a.jsonl")], 101.9, first)) == []
    assert taken(look([entry("a.jsonl")], 102.0, first)) == ["a.jsonl"]


@pytest.mark.parametrize("changed", [entry("a.jsonl", size=11), entry("a.jsonl", mtime_ns=2)])
def test_a_file_that_grows_or_is_touched_settles_anew(changed: Entry) -> None:
    first = look([entry("a.jsonl")], 100.0)
    second = look([changed], 101.9, first)
    third = look([changed], 103.0, second)
    assert taken(second) == taken(third) == []
    assert third.next_look == pytest.approx(0.9)
    assert taken(look([changed], 103.9, third)) == ["a.jsonl"]


def test_a_file_time_in_the_past_or_future_decides_nothing() -> None:
    for mtime_ns in (0, -5, 2**62):
        file = entry("a.jsonl", mtime_ns=mtime_ns)
        first = look([file], 5.0)
        assert taken(first) == []
        assert taken(look([file], 7.0, first)) == ["a.jsonl"]


def test_what_was_taken_is_not_taken_again_until_it_changes() -> None:
    file, other = entry("a.jsonl"), entry("a.jsonl", size=12)
    known = {file.key}
    assert taken(look([file], 50.0, look([file], 0.0), known)) == []
    assert taken(look([other], 50.0, look([other], 0.0), known)) == ["a.jsonl"]


def test_keys_tell_path_size_and_time_apart() -> None:
    variants = [entry("a.jsonl"), entry("b.jsonl"), entry("a.jsonl", 11), entry("a.jsonl", 10, 2)]
    assert len({one.key for one in variants}) == 4
    assert entry("a.jsonl").key == entry("a.jsonl").key


def test_files_come_in_the_order_in_which_they_were_written() -> None:
    files = [entry("z.jsonl", mtime_ns=1), entry("a.jsonl", mtime_ns=3), entry("m.jsonl", mtime_ns=2)]
    assert taken(look(files, 9.0, look(files, 0.0))) == ["z.jsonl", "m.jsonl", "a.jsonl"]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (entry("a.jsonl", kind="link"), "symbolic link"),
        (entry("a.jsonl", kind="special"), "not a regular file"),
        (entry("a/b", kind="deep"), "too many folders deep"),
        (entry("a.mp4"), r"type \.mp4 is not read"),
        (entry("README"), r"type \(none\)"),
        (entry("a.jsonl", size=0), "empty"),
    ],
)
def test_what_is_refused_says_why_and_what_to_do(found: Entry, reason: str) -> None:
    settled = look([found], 9.0, look([found], 0.0))
    assert not settled.take
    (refused,) = settled.refuse
    assert re.search(reason, refused.reason)
    assert refused.advice
    assert not look([found], 20.0, settled, {found.key}).refuse, "said once"


@pytest.mark.parametrize(
    "name",
    [
        ".hidden.jsonl", "a.jsonl.part", "a.tmp", "a.crdownload", "~a.jsonl", "a.jsonl~", ".sub/a.jsonl",
        "a.PART", "x.swp", "b.filepart",
    ],
)  # fmt: skip
def test_hidden_and_half_written_names_are_left_alone(name: str) -> None:
    assert is_unfinished(name)
    assert look([entry(name)], 9.0, look([entry(name)], 0.0)) == Look()


@pytest.mark.parametrize("name", ["a.jsonl", "partition.jsonl", "tmp/a.jsonl", "a.part.jsonl"])
def test_other_names_are_not(name: str) -> None:
    assert not is_unfinished(name)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl.json"])
def test_a_json_beside_a_data_file_describes_it(name: str) -> None:
    files = [entry("rows.jsonl"), entry(name)]
    found = look(files, 9.0, look(files, 0.0))
    assert taken(found) == ["rows.jsonl"]
    assert found.take[0].sidecar == entry(name)


def test_a_json_alone_is_data() -> None:
    files = [entry("rows.json"), entry("other.jsonl"), entry("sub/rows.jsonl")]
    found = look(files, 9.0, look(files, 0.0))
    assert sorted(taken(found)) == ["other.jsonl", "rows.json", "sub/rows.jsonl"]


def test_a_file_waits_for_its_sidecar_to_settle() -> None:
    first = look([entry("rows.jsonl")], 0.0)
    both = [entry("rows.jsonl"), entry("rows.json")]
    second = look(both, 1.9, first)
    assert taken(look(both, 2.5, second)) == []
    assert taken(look(both, 3.9, second)) == ["rows.jsonl"]


def test_a_linked_sidecar_is_none() -> None:
    files = [entry("rows.jsonl"), entry("rows.json", kind="link")]
    found = look(files, 9.0, look(files, 0.0))
    assert found.take[0].sidecar is None
    assert [refused.entry.path for refused in found.refuse] == ["rows.json"]


def test_subfolders_are_flattened_in_names_only() -> None:
    assert run_name("2026/spring/my rows.jsonl") == "my_rows"
    assert file_name("2026/spring/my rows.JSONL") == "my_rows.jsonl"
    assert run_name("a/rows.jsonl") == run_name("b/rows.jsonl")


@given(st.text(min_size=1, max_size=300).filter(lambda text: "\0" not in text))
def test_any_name_becomes_a_harmless_one(name: str) -> None:
    name = os.fsdecode(name.encode("utf-8", "surrogatepass"))
    assert SAFE_NAME.fullmatch(run_name(name))
    assert len(run_name(name)) <= 40
    assert shown_name(name).isprintable()
    assert len(shown_name(name)) <= 200
    assert SAFE_NAME.fullmatch(file_name(name + ".jsonl"))


def test_names_with_bytes_that_are_no_text_are_shown() -> None:
    name = os.fsdecode(b"a\xff\x1b[31m.jsonl")
    assert shown_name(name) == "a\\xff\\x1b[31m.jsonl"
    assert entry(name).key
