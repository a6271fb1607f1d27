"""A workspace's history in words."""

from __future__ import annotations

from scaler_wizard.report.history import Told, tell_inbox, tell_run


def test_decisions_are_sentences() -> None:
    history = [
        {"time": 1.0, "kind": "created", "data": {"recipe": "continual"}},
        {"time": 2.0, "kind": "status", "data": {"from": "running", "to": "queued", "error": "was killed"}},
        {"time": 3.0, "kind": "phase", "data": {"phase": "P0", "status": "started"}},
        {"time": 4.0, "kind": "phase", "data": {"phase": "P0", "status": "done", "checkpoint": "P0-0001"}},
        {"time": 5.0, "kind": "command", "data": {"action": "resume", "by": "me", "reason": ""}},
    ]
    assert [item.words for item in tell_run("a.jsonl", history)] == [
        "filed as a continual job",
        "running -> queued (was killed)",
        "phase P0 committed as P0-0001",
        "command: action resume, by me",
    ]


def test_what_lies_in_the_inbox() -> None:
    seen = [{"name": "b.jsonl", "outcome": "duplicate", "note": "the same content as a", "seen": 7.0}]
    assert tell_inbox(seen) == [Told(7.0, "b.jsonl", "duplicate: the same content as a")]


def test_hostile_rows_say_nothing_dangerous() -> None:
    rows = [{"time": "x", "kind": 3, "data": "no"}, {"kind": "note", "data": {"a": "\x1b[2J" + "b" * 999}}]
    for item in tell_run("x", rows):
        assert "\x1b" not in item.words
        assert len(item.words) <= 300
