"""A conversation as one text and the character spans that the assistant says, for any chat template.

Where a template marks them itself (`{% generation %}`), its marks count. Elsewhere a span starts where the
generation prompt of the turns before ends, and ends where the turn's own render ends; both are checked
against the whole render, so that a template which rewrites history is either understood or refused, never
guessed. Knows nothing of token ids.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from scaler_wizard.data.formats import Conversation
from scaler_wizard.data.template_guard import check_template
from scaler_wizard.errors import IncompatibleModelError

# For base models. The turn's newline belongs to the next turn, so that an answer ends with its end token.
PLAIN_TEMPLATE = """\
{%- for message in messages -%}
  {%- if not loop.first -%}{{- '\\n' -}}{%- endif -%}
  {%- if message['role'] == 'assistant' -%}
    {{- 'Assistant:' -}}{%- generation -%}{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}
  {%- else -%}
    {{- message['role'] | capitalize + ': ' + message['content'] -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\nAssistant:' -}}{%- endif -%}
"""
# Two letters a turn, and the end that a base model knows: the token that ends a text. Template tokens of its
# own it has never seen, nor can low-rank adapters, which leave the head alone, tell them from other unused
# ones: at temperature 0.7 the embedded model ended 2 of 240 answers with <|end|>, and all of them with this.
QUESTION_TEMPLATE = """\
{%- for message in messages -%}
  {%- if message['role'] == 'assistant' -%}
    {{- 'A:' -}}{%- generation -%}{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}
  {%- else -%}
    {{- ('Q: ' if message['role'] == 'user' else '') + message['content'] + '\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'A:' -}}{%- endif -%}
"""
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation's text and the [start, end) character spans of the assistant's turns, in order."""

    text: str
    spans: tuple[tuple[int, int], ...]


def prepare_chat_template(tokenizer: Any) -> str:
    """Make sure that `tokenizer` has a safe chat template, and say in a sentence which one it is.

    Raises:
        ModelError: a template beyond the limits of `template_guard`.
        IncompatibleModelError: no template, and no end-of-sequence token to end a plain answer with.
    """
    if tokenizer.chat_template:
        template = tokenizer.get_chat_template()
        check_template(template)
        method = "its own generation marks" if _GENERATION_TAG.search(template) else "rendered prefixes"
        return f"The model's chat template is used; the assistant's turns are found by {method}"
    if not tokenizer.eos_token:
        raise IncompatibleModelError(
            "the tokenizer has neither a chat template nor an end-of-sequence token",
            "one of them, so that answers end",
            "set eos_token in tokenizer_config.json",
        )
    _set_template(tokenizer, PLAIN_TEMPLATE)
    example = f'"User: ...", "Assistant: ...{tokenizer.eos_token}"'
    return f"The model has no chat template; a plain one is set: {example}"


def use_question_template(tokenizer: Any) -> None:
    """Questions and answers in plain text, whatever template the tokenizer came with: for base models.

    Raises:
        IncompatibleModelError: no end-of-sequence token to end an answer with.
    """
    if not tokenizer.eos_token:
        raise IncompatibleModelError(
            "the tokenizer has no end-of-sequence token", "one, so that answers end",
            "set eos_token in tokenizer_config.json",
        )  # fmt: skip
    _set_template(tokenizer, QUESTION_TEMPLATE)


def _set_template(tokenizer: Any, template: str) -> None:
    """Set a template, opened by the first token that the tokenizer itself puts before a text."""
    opening = tokenizer("").input_ids[:1]
    begins = tokenizer.bos_token_id is not None and opening == [tokenizer.bos_token_id]
    tokenizer.chat_template = ("{{- bos_token -}}\n" if begins else "") + template


def render(conversation: Conversation, tokenizer: Any) -> Rendered:
    """The text of a conversation and where the assistant speaks.

    Raises:
        ValueError: the template refuses the conversation, or renders turns in a way that does not show where
            the assistant speaks; the message says which turn.
    """
    messages = [message.as_dict() for message in conversation.messages]
    if _GENERATION_TAG.search(tokenizer.get_chat_template()):
        return _by_marks(messages, tokenizer)
    whole = _text(messages, tokenizer)
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            start = _start_of(turn, messages, whole, tokenizer)
            spans.append((start, _end_of(turn, messages, whole, start, tokenizer)))
    return Rendered(whole, tuple(spans))


def _text(messages: list[dict[str, str]], tokenizer: Any, add_generation_prompt: bool = False) -> str:
    # Late import: transformers and jinja2's error are needed only once a template runs.
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from None
    return text


def _by_marks(messages: list[dict[str, str]], tokenizer: Any) -> Rendered:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, marks = render_jinja_template(
            conversations=[messages],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from None
    return Rendered(texts[0], tuple((int(start), int(end)) for start, end in marks[0]))


def _start_of(turn: int, messages: list[dict[str, str]], whole: str, tokenizer: Any) -> int:
    """Where generation begins: the end of what prompt and whole text share.

    Usually all of the prompt. Some templates prompt with more than they keep (an opening <think>); then
    what differs is learned, provided that the turns before are rendered alike.
    """
    if turn == 0:
        return 0
    prompt = _text(messages[:turn], tokenizer, add_generation_prompt=True)
    before = _text(messages[:turn], tokenizer)
    shared = shared_length(prompt, whole)
    if shared < len(prompt) and shared < len(before.rstrip()):
        raise ValueError(
            f"the chat template renders the turns before turn {turn + 1} differently once it is answered,"
            " so what the assistant says cannot be told apart"
        )
    return shared


def _end_of(turn: int, messages: list[dict[str, str]], whole: str, start: int, tokenizer: Any) -> int:
    if turn == len(messages) - 1:
        return len(whole)
    alone = _text(messages[: turn + 1], tokenizer)
    if whole.startswith(alone):
        return len(alone)
    # History is rewritten (Qwen3 drops the reasoning of past turns): find the content after the start, and
    # demand behind it exactly what follows it when the turn is the last one.
    content = messages[turn]["content"].strip()
    at = whole.find(content, start)
    ending = alone[alone.rfind(content) + len(content) :]
    end = at + len(content) + len(ending)
    if at < 0 or content not in alone or not ending.strip() or whole[at + len(content) : end] != ending:
        raise ValueError(
            f"the chat template renders turn {turn + 1} differently once the conversation goes on"
        )
    return end


def shared_length(first: str, second: str) -> int:
    """Characters that two texts share from the start."""
    if second.startswith(first):
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(first), len(second)))
