"""The constitution: principles, and the prompts by which a model judges and revises its own answers.

`constitution.yaml` holds one of these. Knows no model: asking one is `inference.critic`'s work, what an exact
check decides is `data.principles`'.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from scaler_wizard.specs.base import Spec
from scaler_wizard.specs.yaml_io import parse_yaml, read_yaml

PromptForm = Literal["chat", "document"]
PLACEHOLDERS = frozenset({"principle", "request", "answer", "critique", "a", "b"})
SHIPPED: Mapping[str, str] = {"default": "constitution.yaml", "embedded": "constitution_embedded.yaml"}
"""Constitutions that ship with the package, by the name a job gives them."""
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]*)\}")


class ForbiddenWord(Spec):
    """The answer must not hold a word."""

    type: Literal["forbidden_word"]
    word: Annotated[str, Field(min_length=1, max_length=100)]
    """The word, between white space, punctuation or the ends of the answer; upper and lower case are one."""
    instead: str | None = None
    """What stands in its place in a right answer that keeps to the principle; it is left out when empty."""


class MostWords(Spec):
    """The answer must not be longer than so many words."""

    type: Literal["most_words"]
    words: Annotated[int, Field(ge=1, le=100_000)]
    """Most words, parted by white space."""


class PoliteEnding(Spec):
    """Requests that hold a word are answered with a polite ending."""

    type: Literal["polite_ending"]
    when: Annotated[str, Field(min_length=1, max_length=100)]
    """The word of the request that asks for it."""
    ending: Annotated[str, Field(min_length=1, max_length=100)]
    """How the answer must end."""


class AnswerOnly(Spec):
    """The answer, on one line: the request is not repeated and nothing leads in."""

    type: Literal["answer_only"]


Check = Annotated[ForbiddenWord | MostWords | PoliteEnding | AnswerOnly, Field(discriminator="type")]


class Prompt(Spec):
    """Words for the model; {principle}, {request}, {answer}, {critique}, {a} and {b} are filled in."""

    form: PromptForm = "chat"
    """chat: asked as a user's turn; document: continued as text, for what a base model knows."""
    text: Annotated[str, Field(min_length=1, max_length=8000)]
    """The words."""
    reply_prefix: str = ""
    """What a reply begins with that is not part of it: words that the prompt put before the answer."""

    @field_validator("text")
    @classmethod
    def _known_placeholders(cls, value: str) -> str:
        unknown = sorted(set(_PLACEHOLDER.findall(value)) - PLACEHOLDERS)
        if unknown:
            valid = ", ".join(f"{{{name}}}" for name in sorted(PLACEHOLDERS))
            raise ValueError(f"the placeholder {{{unknown[0]}}} means nothing here; valid: {valid}")
        if not value.strip():
            raise ValueError("a prompt of white space alone")
        return value

    def holds(self, name: str) -> bool:
        """Whether a placeholder stands in the text."""
        return f"{{{name}}}" in self.text

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with its placeholders replaced, in one pass: braces in what is filled in stay as they are.

        Raises KeyError for a placeholder without a value.
        """
        return _PLACEHOLDER.sub(lambda found: values[found[1]], self.text)


class Principle(Spec):
    """One rule for answers."""

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    """Names the principle in records and reports: lower-case letters, digits and "_"."""
    category: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_ -]{0,39}$")] = "general"
    """What it belongs to: helpful, honest, harmless, respectful, lawful, private..."""
    text: Annotated[str, Field(min_length=1, max_length=2000)]
    """The rule, in words that the model is shown."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often it is drawn for critique, in proportion to the others."""
    verdict: Prompt | None = None
    """Asks whether an answer keeps to it, with {a} and {b}; the constitution's own when empty."""
    critique: Prompt | None = None
    """Asks for a critique in words; the constitution's own when empty."""
    revisions: list[Prompt] = []
    """Ask for a better answer; the constitution's own when empty. With judge: redo all of them must agree.
    Where neither has one the principle is measured by its check, and not trained."""
    check: Check | None = None
    """An exact check, where there is one. It measures; it never chooses what is trained."""

    @field_validator("text")
    @classmethod
    def _has_words(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("a principle without text: say in one or two sentences what an answer must do")
        return value.strip()


class Constitution(Spec):
    """Principles and how they are applied."""

    version: Literal[1]
    """Format of this file."""
    name: Annotated[str, Field(min_length=1, max_length=100)]
    """For reports."""
    judge: Literal["options", "redo"] = "options"
    """How an answer is judged. options: the probability of A and B after `verdict`, in both orders. redo: the
    revisions are asked for, and the answer is fine where all of them give it back."""
    critic: Literal["model", "base"] = "model"
    """Who judges and revises: the model that answers, or the frozen base it began as, which is asked in
    documents only. Small models lose skills on the way that their base still has."""
    margin: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Least difference of log-probabilities (nats) between the options, in each order, that is a verdict."""
    most_length_change: Annotated[float, Field(gt=0, le=100)] | None = None
    """Share by which a revision's words may be more or fewer than the answer's; any number when empty."""
    agree: Annotated[int, Field(ge=1, le=100)] | None = None
    """redo: how many revisions must say the same, where no other is said as often; all of them when empty."""
    piece_words: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """redo: answers are judged in pieces of so many words, for rules about words and models that lose their
    way in longer ones; whole when empty."""
    verdict: Prompt | None = None
    """Asks for one of the options; holds {request}, {answer}, {principle}, {a} and {b}."""
    options: tuple[str, str] = ("yes, it keeps to the principle", "no, it does not keep to the principle")
    """What {a} and {b} are filled with, first the good one; the second asking exchanges them."""
    critique: Prompt | None = None
    """Asks for a critique in words; without one, revisions are asked for at once."""
    revisions: list[Prompt] = []
    """Ask for a better answer."""
    principles: Annotated[list[Principle], Field(min_length=1, max_length=500)]
    """The rules; ids differ."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        twice = [name for name, count in Counter(rule.id for rule in self.principles).items() if count > 1]
        if twice:
            raise ValueError(f'two principles with the id "{twice[0]}": ids must differ')
        for rule in self.principles:
            self._check_prompts(rule)
        return self

    def _check_prompts(self, rule: Principle) -> None:
        asked = [*self.revisions_of(rule), self.verdict_of(rule), self.critique_of(rule)]
        if self.critic == "base" and any(prompt is not None and prompt.form == "chat" for prompt in asked):
            raise ValueError(
                f'a prompt of "{rule.id}" is of form: chat, and critic: base reads documents only'
            )
        if not self.is_applied(rule):
            if rule.check is None:
                raise ValueError(f'"{rule.id}" has neither a revision prompt nor a check')
            return
        verdict, critique = self.verdict_of(rule), self.critique_of(rule)
        if self.judge == "options" and verdict is None:
            raise ValueError(f'"{rule.id}" has no verdict prompt, which judge: options needs')
        if verdict is not None and not all(verdict.holds(name) for name in ("answer", "a", "b")):
            raise ValueError(f'the verdict prompt of "{rule.id}" must hold {{answer}}, {{a}} and {{b}}')
        asking = [*self.revisions_of(rule), *([critique] if critique else [])]
        if any(not prompt.holds("answer") or prompt.holds("a") or prompt.holds("b") for prompt in asking):
            raise ValueError(
                f'critique and revision prompts of "{rule.id}" must hold {{answer}}, not {{a}} or {{b}}'
            )
        answers_critique = any(prompt.holds("critique") for prompt in self.revisions_of(rule))
        if (critique is None and answers_critique) or (critique is not None and critique.holds("critique")):
            raise ValueError(f'a prompt of "{rule.id}" holds {{critique}} before there is one')

    def is_applied(self, rule: Principle) -> bool:
        """Whether answers are judged and revised by it; one without revision prompts is only measured."""
        return bool(self.revisions_of(rule))

    def verdict_of(self, rule: Principle) -> Prompt | None:
        """The principle's prompt, or the constitution's."""
        return rule.verdict or self.verdict

    def critique_of(self, rule: Principle) -> Prompt | None:
        """The principle's prompt, or the constitution's."""
        return rule.critique or self.critique

    def revisions_of(self, rule: Principle) -> list[Prompt]:
        """The principle's prompts, or the constitution's."""
        return rule.revisions or self.revisions

    def principle(self, name: str) -> Principle:
        """The principle of an id."""
        return next(rule for rule in self.principles if rule.id == name)


def read_constitution(name: str | Path) -> Constitution:
    """A constitution that ships ("default", "embedded"), or a file's.

    Raises:
        SpecError: not readable, not YAML, an unknown key, a duplicate id, a principle without text.
    """
    if str(name) in SHIPPED:
        text = files("scaler_wizard.assets").joinpath(SHIPPED[str(name)]).read_text(encoding="utf-8")
        return Constitution.parse(parse_yaml(text, SHIPPED[str(name)]), "constitution")
    return Constitution.parse(read_yaml(Path(name)), "constitution")
