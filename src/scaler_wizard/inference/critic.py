"""A model as critic of answers: asks it by a constitution's prompts, in batches, and reads its verdicts.

How the model is asked is an `Asker`'s work, so that a recipe can ask resumably and a test directly. What
replies amount to is decided in `data.critique`, which knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import nn

from scaler_wizard.data.critique import Item, Opinion, decide_options, decide_redo, fits_length, tidy
from scaler_wizard.errors import IncompatibleModelError
from scaler_wizard.inference.generate import generate, stop_token_ids
from scaler_wizard.inference.requests import Request
from scaler_wizard.inference.scoring import score_targets
from scaler_wizard.specs.constitution import Constitution, Prompt, PromptForm

OPTION_LABELS = ("A", "B")


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt to the model."""

    id: str
    """Names the prompt; unique within one call."""
    form: PromptForm
    text: str


class Asker(Protocol):
    """How the model is asked."""

    def replies(self, key: str, asked: Sequence[Asked]) -> list[str]:
        """The likeliest replies, a document's up to the first line break; `key` names the call."""

    def option_scores(self, key: str, asked: Sequence[Asked]) -> list[tuple[float, float]]:
        """Log-probabilities (nats) of the replies A and B to each prompt."""


def judge(constitution: Constitution, asker: Asker, items: Sequence[Item], key: str) -> list[Opinion]:
    """An opinion on every item. "redo" brings the revision along; "options" does not ask for one.

    Args:
        key: names this call for the asker; different for every call of a stage.
    """
    if constitution.judge == "redo":
        return _redo(constitution, asker, items, key)
    return _options(constitution, asker, items, key)


def revise(
    constitution: Constitution, asker: Asker, items: Sequence[Item], opinions: Sequence[Opinion], key: str
) -> list[Opinion]:
    """The opinions, completed by critique and revision for every item that was flagged and has none yet."""
    wanted = [
        at for at, opinion in enumerate(opinions) if opinion.flag == "violates" and opinion.revised is None
    ]
    critiques = _ask_each(constitution, asker, [(items[at], "") for at in wanted], f"{key}-critique")
    pairs = [(items[at], critique) for at, critique in zip(wanted, critiques, strict=True)]
    prompts = [
        _asked(
            constitution, item, constitution.revisions_of(constitution.principle(item.principle))[0], critique
        )
        for item, critique in pairs
    ]
    texts = asker.replies(f"{key}-revision", prompts) if prompts else []
    completed = list(opinions)
    for at, (item, critique), text in zip(wanted, pairs, texts, strict=True):
        revised = tidy(text)
        kept = revised and fits_length(revised, item.answer, constitution.most_length_change)
        completed[at] = replace(
            opinions[at], critique=critique, revised=revised if kept else None,
            reason="" if kept else "an empty revision" if not revised else "a revision of another length",
        )  # fmt: skip
    return completed


def _ask_each(
    constitution: Constitution, asker: Asker, pairs: Sequence[tuple[Item, str]], key: str
) -> list[str]:
    """A critique of each item in words; "" where none is asked for."""
    prompts = [constitution.critique_of(constitution.principle(item.principle)) for item, _ in pairs]
    asking = [
        (at, _asked(constitution, item, prompt))
        for at, ((item, _), prompt) in enumerate(zip(pairs, prompts, strict=True))
        if prompt is not None
    ]
    found = [""] * len(pairs)
    replies = asker.replies(key, [asked for _, asked in asking]) if asking else []
    for (at, _), reply in zip(asking, replies, strict=True):
        found[at] = tidy(reply)
    return found


def _redo(constitution: Constitution, asker: Asker, items: Sequence[Item], key: str) -> list[Opinion]:
    wordings = [constitution.revisions_of(constitution.principle(item.principle)) for item in items]
    asked = [
        _asked(constitution, item, prompt, suffix=f"/{number}")
        for item, prompts in zip(items, wordings, strict=True)
        for number, prompt in enumerate(prompts)
    ]
    replies = iter(asker.replies(f"{key}-redo", asked) if asked else [])
    return [
        decide_redo(item.answer, [next(replies) for _ in prompts], constitution.most_length_change)
        for item, prompts in zip(items, wordings, strict=True)
    ]


def _options(constitution: Constitution, asker: Asker, items: Sequence[Item], key: str) -> list[Opinion]:
    good, bad = constitution.options
    asked = []
    for item in items:
        prompt = constitution.verdict_of(constitution.principle(item.principle))
        assert prompt is not None, "checked when the constitution was read"
        for number, (a, b) in enumerate(((good, bad), (bad, good))):
            asked.append(_asked(constitution, item, prompt, suffix=f"/{number}", a=a, b=b))
    scores = asker.option_scores(f"{key}-options", asked) if asked else []
    return [
        decide_options(first[0] - first[1], second[1] - second[0], constitution.margin)
        for first, second in zip(scores[::2], scores[1::2], strict=True)
    ]


def _asked(
    constitution: Constitution,
    item: Item,
    prompt: Prompt,
    critique: str = "",
    *,
    suffix: str = "",
    a: str = "",
    b: str = "",
) -> Asked:
    text = constitution.principle(item.principle).text
    filled = prompt.fill({**item.values(text, critique), "a": a, "b": b})
    return Asked(f"{item.id}/{item.principle}{suffix}", prompt.form, filled)


@dataclass(frozen=True)
class ModelAsker:
    """Asks a model in memory. Nothing is kept: a recipe that must resume brings an asker of its own."""

    model: nn.Module
    tokenizer: Any
    max_new_tokens: int = 256

    def replies(self, key: str, asked: Sequence[Asked]) -> list[str]:
        """See `Asker.replies`."""
        stops = stop_token_ids(self.model, self.tokenizer)
        requests = [
            Request(prompt_ids(self.tokenizer, item.form, item.text), self.max_new_tokens, stops)
            for item in asked
        ]
        texts = [
            str(self.tokenizer.decode(list(found.tokens), skip_special_tokens=True))
            for found in generate(self.model, requests)
        ]
        return [
            text.lstrip().split("\n")[0] if item.form == "document" else text
            for item, text in zip(asked, texts, strict=True)
        ]

    def option_scores(self, key: str, asked: Sequence[Asked]) -> list[tuple[float, float]]:
        """See `Asker.option_scores`."""
        return option_scores(self.model, self.tokenizer, asked)


@dataclass(frozen=True, slots=True)
class OptionTokens:
    """How the replies A and B go on from a prompt, as the template or a space before them has it."""

    lead: tuple[int, ...]
    """Tokens that both begin with: a space by itself, in some vocabularies."""
    a: int
    b: int


def option_scores(model: nn.Module, tokenizer: Any, asked: Sequence[Asked]) -> list[tuple[float, float]]:
    """Next-token log-probabilities (nats) of the replies A and B to each prompt, all in one scoring.

    Raises:
        IncompatibleModelError: the tokenizer does not tell the replies apart.
    """
    options = {form: option_tokens(tokenizer, form) for form in sorted({item.form for item in asked})}
    rows, starts = [], []
    for item in asked:
        option = options[item.form]
        prompt = [*prompt_ids(tokenizer, item.form, item.text), *option.lead]
        for token in (option.a, option.b):
            rows.append([*prompt, token])
            starts.append(len(prompt))
    found = [score[0] for score in score_targets(model, rows, starts)]
    return list(zip(found[::2], found[1::2], strict=True))


def prompt_ids(tokenizer: Any, form: PromptForm, text: str) -> tuple[int, ...]:
    """Token ids of a prompt: a user's turn that asks for a reply, or a text to go on with."""
    if form == "document":
        return tuple(tokenizer.encode(text))
    turn = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer(rendered, add_special_tokens=False).input_ids)


def option_tokens(tokenizer: Any, form: PromptForm) -> OptionTokens:
    """The tokens of the replies A and B up to the first that differs.

    Raises:
        IncompatibleModelError: they do not differ.
    """
    first, second = (_reply_ids(tokenizer, form, label) for label in OPTION_LABELS)
    at = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    if at is None:
        raise IncompatibleModelError(
            "a tokenizer or chat template that writes the replies A and B alike", "two different tokens",
            "judge with `judge: redo`, or use a model with another tokenizer",
        )  # fmt: skip
    return OptionTokens(tuple(first[:at]), first[at], second[at])


def _reply_ids(tokenizer: Any, form: PromptForm, label: str) -> list[int]:
    """The token ids that a reply adds to its prompt."""
    if form == "document":
        before, whole = "A or B:", f"A or B: {label}"
    else:
        turn = [{"role": "user", "content": "A or B?"}]
        before = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        reply = [*turn, {"role": "assistant", "content": label}]
        whole = tokenizer.apply_chat_template(reply, tokenize=False)
    ids = list(tokenizer(before, add_special_tokens=False).input_ids)
    both = list(tokenizer(whole, add_special_tokens=False).input_ids)
    # A template that writes more before a reply than it asks with leaves the bare label as the best guess.
    return (
        both[len(ids) :]
        if both[: len(ids)] == ids
        else list(tokenizer(label, add_special_tokens=False).input_ids)
    )
