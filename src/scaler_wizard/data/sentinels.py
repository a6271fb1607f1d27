"""Signs that a text was not made by a base model alone: template tokens, phrases of trained assistants.

A base model whose chat template is on, or an instruct model given as a base, hands down what somebody else
trained into it, and every gain measured afterwards is theirs. Pure; torch-free.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

TEMPLATE_TOKENS: Final = re.compile(
    r"<\|[a-z0-9_ ]{1,40}\|>|<\|turn>|<turn\|>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>"
    r"|<\uff5c[^\uff5c]{1,40}\uff5c>",
    re.IGNORECASE,
)
"""Special tokens of common chat formats, as text."""
PHRASES: Final = (
    "as an ai", "ai language model", "i'm sorry, but i can", "i am sorry, but i can", "i cannot assist",
    "i can't assist", "i'd be happy to help", "i would be happy to help", "how can i assist you",
    "how can i help you today", "certainly! here", "sure! here", "sure, here's", "trained by openai",
    "created by anthropic", "i'm chatgpt", "i am chatgpt", "i'm claude", "my knowledge cutoff",
    "<think>", "</think>",
)  # fmt: skip
"""What assistants say and base models seldom do; lower case."""
MOST_PHRASES = 0.02
"""Share of a base model's texts that may hold such a phrase: the web it read quotes assistants."""
FOLLOWS = 0.5
"""Share of instructions that a base model does not follow in a format it never saw."""
INSTRUCT_NAME: Final = re.compile(
    r"(?:^|[-_./ ])(?:instruct|chat|it|assistant|dpo|rlhf|sft)(?:$|[-_./ ])", re.I
)


def template_tokens(text: str, own: Iterable[str] = ()) -> list[str]:
    """Every special token of a chat format that stands in `text`, and those of `own` (the tokenizer's)."""
    found = TEMPLATE_TOKENS.findall(text)
    return found + [token for token in own if token and token in text and token not in found]


def phrases(text: str) -> list[str]:
    """Every phrase of trained assistants in `text`; curly apostrophes count as straight ones."""
    folded = text.casefold().replace("\u2019", "'")
    return [phrase for phrase in PHRASES if phrase in folded]


@dataclass(frozen=True, slots=True)
class SentinelReport:
    """What was found in a number of texts."""

    n: int
    with_tokens: int
    """Texts that hold a template token."""
    with_phrases: int
    """Texts that hold a phrase of assistants."""
    found: tuple[tuple[str, int], ...]
    """(token or phrase, texts), the most frequent first."""

    @property
    def clean(self) -> bool:
        """No template token, and no more phrases than the web's own."""
        return not self.with_tokens and self.with_phrases <= MOST_PHRASES * self.n

    def words(self) -> str:
        """One sentence without a full stop."""
        if not self.found:
            return f"no template token and no phrase of an assistant in {self.n} texts"
        named = ", ".join(f"{name!r} in {count}" for name, count in self.found[:4])
        return (
            f"template tokens in {self.with_tokens} and phrases of assistants in {self.with_phrases} of "
            f"{self.n} texts: {named}"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "n": self.n, "with_tokens": self.with_tokens, "with_phrases": self.with_phrases,
            "found": dict(self.found), "clean": self.clean,
        }  # fmt: skip


def look_for_sentinels(texts: Sequence[str], own: Sequence[str] = ()) -> SentinelReport:
    """Count template tokens (`own` names the tokenizer's) and phrases in texts that a model made."""
    tokens = [set(template_tokens(text, own)) for text in texts]
    said = [set(phrases(text)) for text in texts]
    counted = Counter(name for names in (*tokens, *said) for name in names)
    return SentinelReport(
        len(texts), sum(map(bool, tokens)), sum(map(bool, said)),
        tuple(sorted(counted.items(), key=lambda item: (-item[1], item[0]))),
    )  # fmt: skip


def suspect_instruct(
    report: SentinelReport,
    *,
    name: str = "",
    templated_accuracy: float | None = None,
    raw_accuracy: float | None = None,
) -> tuple[str, ...]:
    """Why a model given as a base looks like one that was trained on instructions; empty where it does not.

    A chat template in the tokenizer is no sign: many publishers ship it with the base.

    Args:
        report: of texts it made with its chat template off.
        name: its directory or hub name.
        templated_accuracy, raw_accuracy: instructions answered through its chat template, and as they stand.
    """
    reasons = []
    if report.with_tokens:
        reasons.append(f"it writes template tokens with its chat template off ({report.words()})")
    elif not report.clean:
        reasons.append(f"it talks like an assistant ({report.words()})")
    if match := INSTRUCT_NAME.search(name):
        reasons.append(f'its name says "{match.group().strip("-_./ ")}"')
    templated, raw = templated_accuracy or 0.0, raw_accuracy
    if raw is not None and templated >= FOLLOWS and templated > 2 * raw:
        reasons.append(
            f"it follows {templated:.0%} of instructions in its chat template and {raw:.0%} without"
        )
    return tuple(reasons)
