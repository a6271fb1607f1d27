"""Held-out texts to token windows of an exact length. Torch-free; knows a tokenizer, not a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scaler_wizard.errors import EmptyDataError
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.evals.tokenizing import Tokenizer

# A paired standard error below this many documents says little.
MIN_DOCUMENTS = 4


def prefix_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Special tokens that the tokenizer puts before a text (begin-of-sequence), often one or none."""
    marked = tokenizer.encode("a", add_special_tokens=True)
    plain = tokenizer.encode("a", add_special_tokens=False)
    for start in range(len(marked) - len(plain) + 1):
        if marked[start : start + len(plain)] == plain:
            return tuple(marked[:start])
    return ()


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text without special tokens."""
    # A text longer than the model's window is nothing to warn of: it is cut into windows here.
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def token_stream(tokenizer: Tokenizer, texts: Sequence[str], n_tokens: int) -> list[int]:
    """At least `n_tokens` tokens of the texts joined by empty lines, or all there are.

    Raises EmptyDataError when the texts hold no token.
    """
    separator = text_ids(tokenizer, "\n\n")
    stream: list[int] = []
    for text in texts:
        stream.extend(text_ids(tokenizer, text))
        if len(stream) >= n_tokens:
            break
        stream.extend(separator)
    if not any(text.strip() for text in texts) or not stream:
        raise EmptyDataError(
            "the held-out text is empty", "text to measure on", "set dataset.text_file, or hold out more rows"
        )
    return stream


def windows(
    tokenizer: Tokenizer, texts: Sequence[str], length: int, settings: ProbeSettings
) -> list[list[int]]:
    """Up to `settings.documents` token windows of exactly `length`, special prefix included.

    A text that is long enough gives windows of its own; shorter ones are joined by empty lines. Windows never
    overlap, so that a standard error over them means what it says: less text gives fewer windows.

    Raises EmptyDataError when the texts give fewer than four.
    """
    prefix = list(prefix_ids(tokenizer))
    body = length - len(prefix)
    separator = text_ids(tokenizer, "\n\n")
    order = list(range(len(texts)))
    settings.rng("windows").shuffle(order)
    # Spread over the texts first: many windows of one text are not independent.
    per_text = math.ceil(settings.documents / max(1, len(texts)))
    found: list[list[int]] = []
    rest: list[int] = []
    for index in order:
        if len(found) >= settings.documents:
            break
        ids = text_ids(tokenizer, texts[index])
        taken = min(len(ids) // body, per_text, settings.documents - len(found))
        found.extend(prefix + ids[i * body : (i + 1) * body] for i in range(taken))
        rest.extend(separator if rest else [])
        rest.extend(ids[taken * body :])
    missing = min(settings.documents - len(found), len(rest) // body)
    found.extend(prefix + rest[i * body : (i + 1) * body] for i in range(missing))
    if len(found) < MIN_DOCUMENTS:
        raise EmptyDataError(
            f"the held-out text gives {len(found)} windows of {length} tokens",
            f"at least {MIN_DOCUMENTS}",
            "set dataset.text_file to a longer text, raise dataset.holdout_fraction, or lower the context",
        )
    return found


def last_window(tokens: Sequence[int], window: int, prefix: Sequence[int]) -> list[int]:
    """The last `window` tokens with the special prefix kept in front: a context cut to the window."""
    if len(tokens) <= window:
        return list(tokens)
    return [*prefix, *tokens[len(tokens) - window + len(prefix) :]]
