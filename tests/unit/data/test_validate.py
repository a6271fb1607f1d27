"""Validation: each problem is found, counted and named by its line; bad lines are kept; nothing escapes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler_wizard.data.problems import KINDS
from scaler_wizard.data.validate import Level, validate_file
from scaler_wizard.errors import DataError, DataFileMissingError, FormatError, RowError


def talk(question: str, answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def lines(*values: object) -> bytes:
    return b"".join(
        (value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()) + b"\n"
        for value in values
    )


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


GOOD = [talk(f"what is {n} plus {n}", f"it is {2 * n}") for n in range(10, 14)]


def test_clean_file(tmp_path: Path) -> None:
    report = validate_file(write(tmp_path / "a.jsonl", lines(*GOOD)), Level.DEEP)
    assert (report.accepted, report.quarantined, report.duplicates, report.problems) == (4, 0, 0, ())
    assert report.clean
    assert not report.fatal
    assert "4 rows accepted" in report.words()


@pytest.mark.parametrize(
    ("bad", "kind", "reason"),
    [
        (b'{"messages": [', "json", "not JSON"),
        (b"[1, 2]", "json", "an array instead of an object"),
        (b'{"messages": "\xff"}', "encoding", "not UTF-8"),
        (b'{"a": "\x00"}', "json", "NUL bytes"),
        ({"messages": [{"content": "x"}]}, "roles", 'turn 1 has no "role"'),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "roles", "wizard"),
        (talk("x", "  "), "empty_turn", "turn 2 (assistant) is empty"),
        ({"messages": [{"role": "user", "content": "x"}]}, "roles", "no assistant turn"),
        ({"instruction": "x", "output": "y"}, "format", "alpaca, in a file of messages"),
        ({"x": 1}, "format", "no known format (keys: x)"),
    ],
)
def test_bad_line_is_set_aside_with_its_number_reason_and_bytes(
    tmp_path: Path, bad: object, kind: str, reason: str
) -> None:
    path = write(tmp_path / "a.jsonl", lines(GOOD[0], bad, GOOD[1]))
    aside = tmp_path / "aside.jsonl"
    report = validate_file(path, "quick", quarantine=aside)
    assert (report.accepted, report.quarantined) == (2, 1)
    problem = report.problem(kind)
    assert problem is not None
    assert (problem.count, problem.lines, problem.severity) == (1, (2,), "bad_line")
    assert reason in problem.example
    assert not report.fatal
    (record,) = [json.loads(line) for line in aside.read_text().splitlines()]
    assert (record["line"], record["kind"], record["cut"]) == (2, kind, False)
    raw = record["raw"].encode() if record["encoding"] == "utf-8" else base64.b64decode(record["raw"])
    expected = lines(bad).rstrip(b"\n")
    assert raw == expected or json.loads(raw) == json.loads(expected)
    with pytest.raises(RowError, match="row 2"):
        validate_file(path, "quick", on_bad_line="fail")


def test_duplicates_at_every_level_and_near_ones_at_deep(tmp_path: Path) -> None:
    long = "the quick brown fox jumps over the lazy dog while seven wizards watch from the old tower " * 3
    rows = [*GOOD, GOOD[1], talk("what is  10 plus\n10", "it is 20"), talk(long, "fox"), talk(long, "fox!")]
    path = write(tmp_path / "a.jsonl", lines(*rows))
    for level in Level:
        report = validate_file(path, level)
        problem = report.problem("duplicate")
        assert problem is not None
        assert (report.duplicates, problem.lines, problem.example) == (2, (5, 6), "as line 2"), level
        near = report.problem("near_duplicate")
        assert (near.lines if near else ()) == ((8,) if level == Level.DEEP else ())
        assert report.accepted == len(rows)


def test_leakage_of_rows_prompts_and_near_rows_into_the_validation_file(tmp_path: Path) -> None:
    long = "a long and winding question about the history of lighthouses on the northern coast, " * 4
    held = write(tmp_path / "held.jsonl", lines(talk("shared", "row"), talk("asked", "a"), talk(long, "yes")))
    path = write(
        tmp_path / "a.jsonl", lines(talk("shared", "row"), talk("asked", "other"), talk(long + "!", "yes"))
    )
    assert validate_file(path, "quick", validation=held).clean
    report = validate_file(path, "deep", validation=held)
    assert {problem.kind: problem.lines for problem in report.problems} == {
        "leakage": (1,), "prompt_leakage": (2,), "near_leakage": (3,)
    }  # fmt: skip


def test_answer_that_stands_in_its_prompt(tmp_path: Path) -> None:
    rows = [
        talk("Paris is lovely. The capital of France?", "Paris"),
        talk("Parisian food?", "Paris"),
        talk("is 4 even", "4"),
    ]
    report = validate_file(write(tmp_path / "a.jsonl", lines(*rows)), "standard")
    problem = report.problem("answer_leakage")
    assert problem is not None
    assert problem.lines == (1,)


def test_lengths_and_rows_beyond_max_length(tmp_path: Path) -> None:
    class Words:
        def encode(self, text: str) -> list[str]:
            return text.split()

    path = write(tmp_path / "a.jsonl", lines(*(talk("w " * n, "x") for n in range(1, 101))))
    report = validate_file(path, "standard", tokenizer=Words(), max_length=99)
    assert report.lengths is not None
    assert (report.lengths.unit, report.lengths.longest, report.lengths.longer) == ("tokens", 101, 2)
    assert report.lengths.percentiles == {50: 51, 90: 91, 95: 96, 99: 100}
    problem = report.problem("too_many_tokens")
    assert problem is not None
    assert problem.lines == (99, 100)
    assert validate_file(path, "quick").lengths is None


def test_preference_pairs_are_a_format_and_equal_answers_are_none(tmp_path: Path) -> None:
    turns = talk("q", "good")["messages"]
    rows: list[object] = [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"chosen": turns, "rejected": [turns[0], {"role": "assistant", "content": "bad"}]},
        {"prompt": "q", "chosen": "same", "rejected": "same"},
        {"prompt": "q", "chosen": "", "rejected": "bad"},
    ]
    report = validate_file(write(tmp_path / "a.jsonl", lines(*rows)))
    assert (report.row_format, report.accepted, report.quarantined) == ("preference", 2, 2)
    assert report.problem("empty_turn") is not None
    # Both forms say the same.
    assert report.duplicates == 1


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", "text".encode("utf-16"), "not_text"),
        ("a.jsonl", b"\x1f\x8b\x08abc", "not_text"),
        ("a.json", b"PAR1....PAR1", "not_text"),
        ("a.json", b'[{"text": "a"}, {"text": "b"} {"text": "c"}]', "damage"),
        ("a.parquet", b"PAR1 and nothing else", "damage"),
        ("a.arrow", b"ARROW1 and nothing else", "damage"),
        ("a.csv", b'text\n"never closes\n', "damage"),
        ("a.jsonl", b'{"x": 1}\n', "unknown_format"),
        ("a.jsonl", b"\n\n", "empty"),
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b"\xff\n", "empty"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    report = validate_file(write(tmp_path / name, content))
    assert report.fatal
    assert report.problem(kind) is not None, report.words()
    assert KINDS[kind].severity == "fatal"
    assert "cannot be used" in report.words()


def test_what_is_no_file_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileMissingError):
        validate_file(tmp_path / "none.jsonl")
    with pytest.raises(FormatError, match="zip"):
        validate_file(write(tmp_path / "a.zip", b"PK"))
    path = write(tmp_path / "a.jsonl", lines(*GOOD))
    before = path.read_bytes()
    with pytest.raises(DataError, match="is a file to read"):
        validate_file(path, quarantine=tmp_path / "." / "a.jsonl")
    assert path.read_bytes() == before


def test_byte_order_mark_is_a_warning(tmp_path: Path) -> None:
    report = validate_file(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + lines(*GOOD)))
    assert [problem.kind for problem in report.problems] == ["bom"]
    assert report.accepted == 4


def test_no_quarantine_file_without_a_bad_line(tmp_path: Path) -> None:
    report = validate_file(write(tmp_path / "a.jsonl", lines(*GOOD)), quarantine=tmp_path / "aside.jsonl")
    assert report.quarantine is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=120)
    | st.lists(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["messages", "role", "content", "chosen", "rejected", "prompt", "text", "x"]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        ),
        max_size=4,
    ).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt"]),
    level=st.sampled_from(Level),
)
def test_hostile_files_give_a_report_or_our_errors(
    tmp_path: Path, content: bytes, suffix: str, level: Level
) -> None:
    path = write(tmp_path / f"a{suffix}", content)
    aside = tmp_path / "aside.jsonl"
    aside.unlink(missing_ok=True)
    try:
        report = validate_file(path, level, validation=path, quarantine=aside, max_length=5)
    except DataError:
        return  # the validation file is the same hostile file, and one that cannot be read is refused
    json.dumps(report.as_dict(), allow_nan=False)
    assert report.words()
    kept = aside.read_text().splitlines() if aside.exists() else []
    assert len(kept) == report.quarantined
    assert report.fatal == (report.accepted == 0 or report.problem("damage") is not None)
