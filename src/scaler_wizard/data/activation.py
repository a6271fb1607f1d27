"""Where an activated adapter is switched on in a row: at its invocation tokens, right before the answer.

An activated LoRA (Greenewald et al. 2025, arXiv:2504.12397) leaves everything before its invocation to the
base model, so that the base's keys and values of the content serve every such adapter. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scaler_wizard.data.token_rows import TokenRow, TokenRows
from scaler_wizard.errors import IncompatibleModelError, RowError


def activate(rows: Sequence[TokenRow], invocation: Sequence[int]) -> TokenRows:
    """The rows with `active_from` at the last invocation that ends before the last answer begins.

    PEFT activates at the last occurrence in the whole sequence; here tokens of the answer do not count: an
    answer that spells the invocation has not been written yet when the adapter is switched on. Answers of
    earlier turns lie in the base's part and train nothing.

    Raises:
        RowError: a row with an answer but without the invocation before it.
    """
    assert len(invocation) > 0
    wanted = np.asarray(invocation, dtype=np.int64)
    return TokenRows.of(_activated(rows, wanted))


def _activated(rows: Sequence[TokenRow], wanted: Any) -> Iterator[TokenRow]:
    for row in rows:
        if not row.n_labels:
            yield row
            continue
        start = last_occurrence(row.ids[: _answer_start(row)], wanted)
        if start is None:
            raise RowError(
                f"row {row.number} has an answer that the adapter's invocation does not precede",
                f"the {len(wanted)} invocation tokens between content and answer",
                "use the chat template that the adapter's invocation was taken from",
            )
        trained = row.trained.copy()
        trained[:start] = False
        yield replace(row, trained=trained, active_from=start)


def _answer_start(row: TokenRow) -> int:
    """Index of the first token of the last run of trained tokens."""
    runs = np.flatnonzero(row.trained & ~np.concatenate([[False], row.trained[:-1]]))
    return int(runs[-1])


def last_occurrence(ids: Any, wanted: Any) -> int | None:
    """Where `wanted` [k] begins for the last time in `ids` [n]; None where it does not occur."""
    ids, wanted = np.asarray(ids), np.asarray(wanted)
    if len(ids) < len(wanted):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(wanted))
    found = np.flatnonzero((windows == wanted).all(axis=1))
    return int(found[-1]) if len(found) else None


def chat_invocation(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that a chat template writes to open the assistant's turn: the invocation of a chat expert.

    Raises:
        IncompatibleModelError: the template opens no turn, or opens it in different ways.
    """
    found = {_opening(tokenizer, text) for text in ("a", "b c")}
    if len(found) != 1 or not (opening := found.pop()):
        raise IncompatibleModelError(
            "a chat template without a fixed opening of the assistant's turn",
            "the same tokens after every question",
            "give the experts an invocation of their own",
        )
    return opening


def _opening(tokenizer: Any, text: str) -> tuple[int, ...]:
    messages = [{"role": "user", "content": text}]
    asked, opened = (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=flag)
        for flag in (False, True)
    )
    if not opened.startswith(asked):
        return ()
    asked_ids, ids = (
        tokenizer(part, add_special_tokens=False, verbose=False).input_ids for part in (asked, opened)
    )
    # Where a token spans both parts, the opening cannot be told from the content.
    return tuple(ids[len(asked_ids) :]) if ids[: len(asked_ids)] == asked_ids else ()
