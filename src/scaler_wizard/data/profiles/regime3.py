"""Symbolic reasoning with one place for the answer: `reasoning <<ANS_START>>answer<<ANS_END>>`.

Understands the ways in which answers are commonly set off: these markers, `<think>` before the answer,
`#### answer` (GSM8K), `\\boxed{answer}`. Where there is none, the whole response is the answer.
"""

from __future__ import annotations

import random
import re
from typing import Final

from scaler_wizard.data.profiles.profile import Profile
from scaler_wizard.errors import RowError

ANSWER_START: Final = "<<ANS_START>>"
ANSWER_END: Final = "<<ANS_END>>"

_MARKED = re.compile(rf"{ANSWER_START}(.*?){ANSWER_END}", re.DOTALL)
_THOUGHT = re.compile(r"<think>(.*?)</think>(.*)", re.DOTALL)
_HASHES = re.compile(r"(.*)^####[ \t]*(\S[^\n]*)\s*\Z", re.DOTALL | re.MULTILINE)
_BOXED = re.compile(r"\\boxed\{([^{}]+)\}")
# GSM8K's calculator notes, <<48/2=24>>, would be read as markers.
_CALCULATOR = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")


def split_answer(text: str) -> tuple[str, str]:
    """(reasoning, answer) of a response; the reasoning may be empty."""
    marked = list(_MARKED.finditer(text))
    if marked:
        last = marked[-1]
        reasoning = _MARKED.sub(" ", text[: last.start()]) + " " + text[last.end() :]
        return _clean(reasoning), last[1].strip()
    if match := _THOUGHT.search(text):
        return _clean(match[1]), match[2].strip()
    if match := _HASHES.match(text):
        return _clean(match[1]), match[2].strip()
    boxed = _BOXED.findall(text)
    return (_clean(text), boxed[-1].strip()) if boxed else ("", text.strip())


def marked_answer(output: str) -> str | None:
    """The answer that a model marked, the first whole pair of markers; None where there is none."""
    match = _MARKED.search(output)
    return match[1].strip() if match else None


def _clean(reasoning: str) -> str:
    return _unmarked(_CALCULATOR.sub("", reasoning).replace("<think>", ""))


def _unmarked(text: str) -> str:
    """Without markers, also those that appear when one inside them is taken out."""
    while ANSWER_START in text or ANSWER_END in text:
        text = text.replace(ANSWER_START, "").replace(ANSWER_END, "")
    return text.strip()


def _respond(text: str, rng: random.Random) -> str:
    reasoning, answer = split_answer(text)
    answer = _unmarked(answer)
    if not answer:
        raise RowError("a response without an answer", "an answer", "remove the row", kind="empty_turn")
    marked = f"{ANSWER_START}{answer}{ANSWER_END}"
    return f"{reasoning}\n{marked}" if reasoning else marked


REGIME3 = Profile(
    "regime3",
    "Symbolic reasoning, then the answer between <<ANS_START>> and <<ANS_END>>.",
    f"Reason step by step in short symbolic lines. Then write only the answer between {ANSWER_START} and "
    f"{ANSWER_END}.",
    _respond,
)
