"""Which format a file is in, and what its rows say."""

from __future__ import annotations

import pytest

from scaler_wizard.data.formats import Conversation, Document, Message, detect_format, row_format, to_messages
from scaler_wizard.data.rows import Row
from scaler_wizard.errors import FormatError, RowError

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SAMPLES = {
    "messages": {"messages": [U, A]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "alpaca": {"instruction": "q", "input": "", "output": "a"},
    "prompt_completion": {"question": "q", "answer": "a"},
}


def rows(*values: dict[str, object]) -> list[Row]:
    return [Row(number, value) for number, value in enumerate(values, start=1)]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_chat_format_says_the_same(name: str) -> None:
    (row,) = rows(SAMPLES[name])
    found = detect_format([row], "x.jsonl")
    assert found == name
    assert to_messages(row, found) == Conversation((Message("user", "q"), Message("assistant", "a")))


def test_text_is_a_document() -> None:
    (row,) = rows({"text": "once"})
    assert to_messages(row, detect_format([row], "x")) == Document("once")


def test_system_prompt_is_put_before_conversations_without_one() -> None:
    with_own = {"messages": [{"role": "system", "content": "own"}, U, A]}
    empty = {"messages": [{"role": "system", "content": " "}, U, A]}
    for value, expected in ((with_own, "own"), (empty, "given"), (SAMPLES["alpaca"], "given")):
        (row,) = rows(value)
        found = to_messages(row, row_format(value), "given")  # type: ignore[arg-type]
        assert isinstance(found, Conversation)
        assert found.messages[0] == Message("system", expected)


def test_alpaca_input_and_content_parts() -> None:
    (row,) = rows({"instruction": "add", "input": "1 2", "output": "3"})
    assert to_messages(row, "alpaca").messages[0].content == "add\n\n1 2"  # type: ignore[union-attr]
    parts = [{"type": "text", "text": "q1"}, {"type": "text", "text": "q2"}]
    (row,) = rows({"messages": [{"role": "user", "content": parts}, A]})
    assert to_messages(row, "messages").messages[0].content == "q1q2"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([{"content": "q"}, A], 'turn 1 has no "role"'),
        ([{"role": "narrator", "content": "q"}, A], "narrator"),
        ([{"role": ["user"], "content": "q"}, A], "turn 1 has the role"),
        ([U, {"role": "assistant", "content": "  "}], "turn 2 \\(assistant\\) is empty"),
        ([U, {"role": "assistant", "content": None}], "turn 2 is missing"),
        ([U], "no assistant turn"),
        ([A, U], "before anybody asked"),
        (["hello", A], "turn 1 is not an object"),
        ([], "no list of turns"),
        ([{"role": "user", "content": [{"type": "image"}]}, A], "only text"),
    ],
)
def test_unusable_turns_are_row_errors(turns: list[object], reason: str) -> None:
    with pytest.raises(RowError, match=reason) as caught:
        to_messages(Row(7, {"messages": turns}), "messages", source="x.jsonl")
    assert "x.jsonl, row 7" in caught.value.found


def test_mixed_formats_name_the_first_line_that_differs() -> None:
    with pytest.raises(FormatError, match="row 1 is alpaca, row 3 is prompt_completion"):
        detect_format(rows(SAMPLES["alpaca"], SAMPLES["alpaca"], SAMPLES["prompt_completion"]), "x")


def test_unknown_format_lists_the_known_ones_and_the_keys() -> None:
    with pytest.raises(FormatError, match=r"keys of its first row: id, body.*sharegpt.*alpaca") as caught:
        detect_format(rows({"id": 1, "body": "b"}), "x.jsonl")
    assert '"completion"' in caught.value.expected


def test_one_odd_row_is_left_to_the_row_policy() -> None:
    odd = rows({"id": 1}, SAMPLES["alpaca"])
    assert detect_format(odd, "x") == "alpaca"
    with pytest.raises(RowError, match="row 1: instruction is missing"):
        to_messages(odd[0], "alpaca")


def test_preference_pairs_are_refused_for_imitation() -> None:
    pair = rows({"prompt": "q", "chosen": "a", "rejected": "b"})
    with pytest.raises(FormatError, match="preference pairs"):
        detect_format(pair, "x")
    assert detect_format(pair, "x", preferences=True) == "preference"
