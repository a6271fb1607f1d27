"""What a row of any format says, as the checks look at it: its turns, its prompt, its answer.

Knows formats; knows nothing of files and of what is checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from scaler_wizard.data.fingerprints import collapse, fingerprint
from scaler_wizard.data.formats import (
    Document,
    Message,
    RowFormat,
    row_format,
    to_messages,
    to_pair,
)
from scaler_wizard.data.rows import Row, row_error


@dataclass(frozen=True, slots=True)
class Content:
    """One usable row."""

    row_format: RowFormat
    turns: tuple[Message, ...]
    """The conversation, with the better answer of a pair; one turn without a role for plain text."""
    answer: str
    """The last turn of the assistant; "" for plain text."""
    prompt: str
    """Everything before it; "" for plain text."""
    rejected: str = ""

    @property
    def text(self) -> str:
        """All that is said, a line a turn."""
        return "\n".join(
            [*(turn.content for turn in self.turns), *([self.rejected] if self.rejected else [])]
        )

    @property
    def fingerprint(self) -> int:
        """Equal for rows that say the same, white space apart."""
        said = [part for turn in self.turns for part in (turn.role, turn.content)]
        return fingerprint(*said, self.rejected)

    @property
    def prompt_fingerprint(self) -> int:
        """Equal for rows with the same prompt, white space apart."""
        return fingerprint(self.prompt)

    def answer_in_prompt(self, shortest: int) -> bool:
        """Whether the answer, of at least `shortest` characters, stands verbatim and whole in the prompt."""
        answer, prompt = collapse(self.answer), collapse(self.prompt)
        if len(answer) < shortest:
            return False
        at = prompt.find(answer)
        while at >= 0:
            before, after = prompt[at - 1 : at], prompt[at + len(answer) : at + len(answer) + 1]
            if not (before.isalnum() and answer[0].isalnum()) and not (
                after.isalnum() and answer[-1].isalnum()
            ):
                return True
            at = prompt.find(answer, at + len(answer))
        return False


def read_content(row: Row, expected: RowFormat | None, source: str) -> Content:
    """What a row says.

    Args:
        expected: the file's format; found from this row when None.

    Raises:
        RowError: no known format, another one than `expected`, or unusable (see `to_messages`, `to_pair`).
    """
    found = row_format(row.value)
    if found is None or (expected is not None and found != expected):
        keys = ", ".join(str(key)[:40] for key in list(row.value)[:8]) or "none"
        reason = f"no known format (keys: {keys})" if found is None else f"{found}, in a file of {expected}"
        raise row_error(source, row.number, reason, "one known format a file", kind="format")
    if found == "preference":
        pair = to_pair(row, None, source)
        rejected = "\n".join(turn.content for turn in pair.rejected)
        return Content(found, (*pair.prompt, *pair.chosen), _said(pair.chosen), _said(pair.prompt), rejected)
    said = to_messages(row, found, None, source)
    if isinstance(said, Document):
        return Content(found, (Message("", said.text),), "", "")
    last = max(at for at, turn in enumerate(said.messages) if turn.role == "assistant")
    return Content(found, said.messages, said.messages[last].content, _said(said.messages[:last]))


def _said(turns: tuple[Message, ...]) -> str:
    return "\n".join(turn.content for turn in turns)
