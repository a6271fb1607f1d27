"""Rows to conversations and documents: which format a file is in, and what each row says.

Knows nothing of files, tokenizers or torch. A format is found from the first rows and stated, never
guessed row by row: a file that mixes formats is refused with the first line that differs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from scaler_wizard.data.rows import Row, row_error
from scaler_wizard.errors import FormatError

RowFormat = Literal["messages", "sharegpt", "alpaca", "prompt_completion", "text", "preference"]
DETECTION_ROWS = 50

EXAMPLES: dict[RowFormat, str] = {
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    "alpaca": '{"instruction": "...", "input": "...", "output": "..."}',
    "prompt_completion": '{"prompt": "...", "completion": "..."} (or question/answer, prompt/response)',
    "text": '{"text": "..."}',
    "preference": '{"prompt": "...", "chosen": "...", "rejected": "..."} (texts, or lists of turns)',
}
# Other names under which the two halves are published; the first pair present wins.
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"))
_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "tool": "tool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; `role` is system, user, assistant or tool."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """The mapping that chat templates read."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of which the assistant's are learned."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One prompt with a better and a worse answer."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text, all of it learned."""

    text: str


def row_format(value: dict[str, Any]) -> RowFormat | None:
    """The format of one row by its keys, or None."""
    if isinstance(value.get("messages"), list):
        return "messages"
    turns = value.get("conversations")
    if isinstance(turns, list):
        first = turns[0] if turns and isinstance(turns[0], dict) else {}
        return "messages" if "role" in first else "sharegpt"
    if "chosen" in value and "rejected" in value:
        return "preference"
    if "instruction" in value and "output" in value:
        return "alpaca"
    if _pair(value) is not None:
        return "prompt_completion"
    return "text" if isinstance(value.get("text"), str) else None


def _pair(value: dict[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if pair[0] in value and pair[1] in value), None)


def detect_format(rows: Iterable[Row], source: str, *, preferences: bool = False) -> RowFormat:
    """The one format of the first 50 rows.

    Rows of no known format are left to `to_messages`, which reports each, unless there is nothing else.

    Args:
        source: name of the file, for messages.
        preferences: whether the caller can learn from chosen/rejected pairs.

    Raises:
        FormatError: no known format (lists them and the keys found), two formats in one file, or preference
            pairs where answers to imitate were needed.
    """
    found: tuple[RowFormat, int] | None = None
    unknown: Row | None = None
    for row in islice(rows, DETECTION_ROWS):
        this = row_format(row.value)
        if this is None:
            unknown = unknown or row
        elif found is None:
            found = this, row.number
        elif this != found[0]:
            raise FormatError(
                f"{source} mixes formats: row {found[1]} is {found[0]}, row {row.number} is {this}",
                "one format a file", "split the file by format and train on each",
            )  # fmt: skip
    if found is None:
        keys = ", ".join(list(unknown.value)[:12]) if unknown else "none"
        known = "; ".join(f"{name} {example}" for name, example in EXAMPLES.items())
        raise FormatError(
            f"{source} is in no format known here (keys of its first row: {keys})",
            f"one of: {known}",
            "rename the keys to one of these formats",
        )
    if found[0] == "preference" and not preferences:
        raise FormatError(
            f"{source} holds preference pairs (chosen, rejected)",
            "answers to imitate: supervised training has no use for a rejected answer",
            "keep prompt and chosen as prompt and completion, or use a preference objective",
        )
    return found[0]


def to_messages(
    row: Row, row_format: RowFormat, system_prompt: str | None = None, source: str = "data"
) -> Conversation | Document:
    """What one row says.

    Empty system turns say nothing and are left out; `system_prompt` is put before a conversation without one.

    Raises:
        RowError: another format, a missing or unknown role, an empty turn, no assistant turn, no text.
    """
    try:
        if row_format == "text":
            return Document(_text(row.value.get("text"), "text"))
        turns = _TURNS[row_format](row.value)
        return _conversation(turns, system_prompt)
    except _UnusableError as error:
        expected = EXAMPLES.get(row_format, "")
        raise row_error(source, row.number, str(error), expected, kind=error.kind) from None


def to_pair(row: Row, system_prompt: str | None = None, source: str = "data") -> PreferencePair:
    """What one row of preferences says.

    Prompt, chosen and rejected are texts or lists of turns; where both answers are whole conversations, the
    turns that they share are the prompt.

    Raises:
        RowError: no prompt, an empty or missing answer, or two answers that are the same.
    """
    try:
        prompt = tuple(_turns_of(row.value["prompt"], "prompt", "user")) if "prompt" in row.value else ()
        chosen = _turns_of(row.value.get("chosen"), "chosen", "assistant")
        rejected = _turns_of(row.value.get("rejected"), "rejected", "assistant")
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt = (*prompt, *chosen[:shared])
        answers = [[turn for turn in turns[shared:] if turn.content.strip()] for turns in (chosen, rejected)]
        if not all(answers):
            raise _UnusableError("empty_turn", "chosen or rejected is empty")
        if answers[0] == answers[1]:
            raise _UnusableError("roles", "chosen and rejected are the same, so nothing is preferred")
        whole = [_conversation([*prompt, *answer], system_prompt) for answer in answers]
    except _UnusableError as error:
        raise row_error(source, row.number, str(error), EXAMPLES["preference"], kind=error.kind) from None
    opening = whole[0].messages[: -len(answers[0])]
    return PreferencePair(opening, tuple(answers[0]), tuple(answers[1]))


def _turns_of(value: object, where: str, role: str) -> list[Message]:
    if isinstance(value, list):
        return _listed_turns({"messages": value}, "role", "content")
    text = _text(value, where)
    if not text.strip():
        raise _UnusableError("empty_turn", f"{where} is empty")
    return [Message(role, text)]


class _UnusableError(ValueError):
    """Why a row says nothing; `kind` is the problem's name in a validation report."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        super().__init__(reason)


def _conversation(turns: list[Message], system_prompt: str | None) -> Conversation:
    messages = []
    for index, turn in enumerate(turns, start=1):
        if turn.content.strip():
            messages.append(turn)
        elif turn.role != "system":
            raise _UnusableError("empty_turn", f"turn {index} ({turn.role}) is empty")
    if not any(message.role == "assistant" for message in messages):
        raise _UnusableError("roles", "no assistant turn, so there is nothing to learn")
    if messages[0].role == "assistant":
        raise _UnusableError("roles", "the assistant speaks before anybody asked")
    if system_prompt and messages[0].role != "system":
        messages.insert(0, Message("system", system_prompt))
    return Conversation(tuple(messages))


def _listed_turns(value: dict[str, Any], role_key: str, content_key: str) -> list[Message]:
    turns = value.get("messages", value.get("conversations"))
    if not isinstance(turns, list) or not turns:
        raise _UnusableError("format", "no list of turns")
    messages = []
    for index, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise _UnusableError("format", f"turn {index} is not an object")
        role = turn.get(role_key)
        if role is None:
            raise _UnusableError("roles", f'turn {index} has no "{role_key}"')
        known_role = _ROLES.get(role) if isinstance(role, str) else None
        if known_role is None:
            known = ", ".join(_ROLES)
            raise _UnusableError(
                "roles", f"turn {index} has the role {str(role)[:40]!r}, which is none of {known}"
            )
        messages.append(Message(known_role, _content(turn.get(content_key), f"turn {index}")))
    return messages


def _content(value: object, where: str) -> str:
    """Text of a turn: a string, or a list of {"type": "text", "text": ...} parts."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        kinds = {str(part.get("type")) for part in value} - {"text"}
        if kinds:
            raise _UnusableError(
                "format", f"{where} holds {', '.join(sorted(kinds))[:80]}; only text is learned"
            )
        return "".join(_text(part.get("text"), where) for part in value)
    return _text(value, where)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        reason = "is missing" if value is None else "is not text"
        raise _UnusableError("empty_turn" if value is None else "format", f"{where} {reason}")
    if where == "text" and not value.strip():
        raise _UnusableError("empty_turn", "text is empty")
    return value


def _messages(value: dict[str, Any]) -> list[Message]:
    return _listed_turns(value, "role", "content")


def _sharegpt(value: dict[str, Any]) -> list[Message]:
    turns = _listed_turns(value, "from", "value")
    system = value.get("system")
    return (
        [Message("system", system), *turns]
        if isinstance(system, str) and turns[0].role != "system"
        else turns
    )


def _alpaca(value: dict[str, Any]) -> list[Message]:
    question = _text(value.get("instruction"), "instruction")
    if value.get("input"):
        question += "\n\n" + _text(value["input"], "input")
    system = [Message("system", value["system"])] if isinstance(value.get("system"), str) else []
    return [*system, Message("user", question), Message("assistant", _text(value.get("output"), "output"))]


def _prompt_completion(value: dict[str, Any]) -> list[Message]:
    pair = _pair(value)
    if pair is None:
        raise _UnusableError("format", "no prompt and completion")
    if isinstance(value[pair[0]], list):
        prompt = _listed_turns({"messages": value[pair[0]]}, "role", "content")
        answer = value[pair[1]]
        return prompt + (
            _listed_turns({"messages": answer}, "role", "content")
            if isinstance(answer, list)
            else [Message("assistant", _text(answer, pair[1]))]
        )
    return [
        Message("user", _text(value[pair[0]], pair[0])),
        Message("assistant", _text(value[pair[1]], pair[1])),
    ]


def _preference(value: dict[str, Any]) -> list[Message]:
    raise _UnusableError("format", "a preference pair is not one conversation")


_TURNS = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
}
