"""Rows to token ids and the marks of what is trained, once, in flat arrays.

Conversations train on what the assistant says; plain text trains on everything. Nothing is cut off: a row
longer than the context is split or refused, and every row without a trained token is counted and named.
Knows nothing of batches or models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from scaler_wizard.data.chat import Rendered, prepare_chat_template, render, shared_length
from scaler_wizard.data.formats import Conversation, Document, RowFormat, to_messages
from scaler_wizard.data.rows import BadRows, Row, row_error
from scaler_wizard.data.token_rows import TokenRow, TokenRows, flat_rows
from scaler_wizard.errors import EmptyDataError, IncompatibleModelError, RowError

MAX_NAMED_ROWS = 1000

Dress: TypeAlias = Callable[[Conversation, int], Conversation]
"""(conversation, number of its row) -> the conversation that is tokenised in its place."""


def as_it_is(conversation: Conversation, number: int) -> Conversation:
    """The conversation itself."""
    return conversation


@dataclass(slots=True)
class TokenReport:
    """What tokenising found, for people and telemetry."""

    template: str = ""
    """The sentence of `prepare_chat_template`, "" for plain text."""
    rows: int = 0
    """Data rows tokenised."""
    pieces: int = 0
    """Token rows; more than `rows` where long rows were split."""
    tokens: int = 0
    trained_tokens: int = 0
    """Tokens with a label."""
    longest: int = 0
    """Tokens of the longest data row, before splitting."""
    split_rows: int = 0
    """Data rows longer than the context that were split."""
    zero_label_pieces: int = 0
    """Token rows without one label: kept and counted, but no batch takes them."""
    zero_label_rows: list[int] = field(default_factory=list)
    """Numbers of the first 1,000 data rows that have such a piece."""
    control_token_rows: int = 0
    """Conversations whose text itself spells a special token, which then ends or opens turns."""
    turns: int = 0
    """Assistant turns."""
    turns_with_end: int = 0
    """Assistant turns whose end-of-turn token is trained."""
    end_of_turn: str | None = None
    """That token; None when no turn ends in one."""

    @property
    def end_of_turn_trained(self) -> bool | None:
        """Whether every assistant turn trains its end-of-turn token; None without conversations."""
        return None if self.turns == 0 else self.turns_with_end == self.turns


@dataclass(frozen=True, slots=True)
class TokenizedData:
    """Token rows and what was found on the way."""

    rows: TokenRows
    report: TokenReport


@dataclass(frozen=True, slots=True)
class _Encoded:
    ids: list[int]
    trained: list[bool]
    ends: tuple[int | None, ...] = ()
    """The end-of-turn token id of each assistant turn, None where it has none."""


def tokenize_rows(
    rows: Iterable[Row],
    row_format: RowFormat,
    tokenizer: Any,
    *,
    context: int,
    long_rows: Literal["split", "refuse"] = "split",
    system_prompt: str | None = None,
    bad_rows: BadRows | None = None,
    source: str = "data",
    dress: Dress = as_it_is,
) -> TokenizedData:
    """Tokenise every row once.

    A conversation is rendered by the tokenizer's chat template (a plain one is set where there is none) and
    trains on the assistant's turns including their end-of-turn token. A document trains on all its tokens
    and ends with the end-of-sequence token.

    A row of more than `context` tokens is cut every `context` tokens. Each piece is then its own sequence: it
    keeps its marks and restarts at position 0, sees nothing of the piece before, and the target at each cut
    has no label because nothing comes before it. For conversations that means a later piece can begin in
    the middle of a turn; `refuse` is there for who does not want that.

    Args:
        tokenizer: a fast transformers tokenizer (character offsets are needed).
        context: most tokens of a piece.
        dress: changes a conversation before it is rendered (a data profile).

    Raises:
        RowError: a row that `to_messages` or the chat template refuses, or a long row under "refuse", unless
            `bad_rows` sets them aside.
        EmptyDataError: no row left.
        IncompatibleModelError, ModelError: a tokenizer or chat template that cannot be used.
    """
    assert context > 1, context
    if not tokenizer.is_fast:
        raise IncompatibleModelError(
            "a tokenizer without character offsets",
            "a fast tokenizer (tokenizer.json)",
            "convert the tokenizer",
        )
    bad = bad_rows if bad_rows is not None else BadRows()
    report = TokenReport()
    if row_format != "text":
        report.template = prepare_chat_template(tokenizer)
    pieces = _pieces(
        rows, row_format, tokenizer, context, long_rows, system_prompt, bad, source, report, dress
    )  # fmt: skip
    token_rows = flat_rows(pieces)
    if not len(token_rows):
        raise EmptyDataError(
            f"{source} has no usable row" + (f" ({bad.first()})" if bad.count else ""),
            "at least one row",
            "check the file and its format",
        )
    return TokenizedData(token_rows, report)


def _pieces(
    rows: Iterable[Row],
    row_format: RowFormat,
    tokenizer: Any,
    context: int,
    long_rows: Literal["split", "refuse"],
    system_prompt: str | None,
    bad: BadRows,
    source: str,
    report: TokenReport,
    dress: Dress,
) -> Iterator[tuple[int, list[int], list[bool]]]:
    special = [token for token in tokenizer.all_special_tokens if token.strip()]
    for row in rows:
        try:
            content = to_messages(row, row_format, system_prompt, source)
            if isinstance(content, Document):
                encoded = _encode_document(content, tokenizer)
            else:
                content = dress(content, row.number)
                encoded = _encode_rendered(render(content, tokenizer), tokenizer)
                texts = [message.content for message in content.messages]
                report.control_token_rows += any(token in text for text in texts for token in special)
            if len(encoded.ids) > context and long_rows == "refuse":
                raise ValueError(f"{len(encoded.ids):,} tokens, and the context is {context:,}")
        except ValueError as error:
            bad.add(row.number, row_error(source, row.number, str(error)))
            continue
        except RowError as error:
            bad.add(row.number, error)
            continue
        yield from _count(row.number, encoded, context, report, tokenizer)


def _count(
    number: int, encoded: _Encoded, context: int, report: TokenReport, tokenizer: Any
) -> Iterator[tuple[int, list[int], list[bool]]]:
    """The pieces of one row, entered into the report."""
    n_tokens = len(encoded.ids)
    report.rows += 1
    report.tokens += n_tokens
    report.longest = max(report.longest, n_tokens)
    report.split_rows += n_tokens > context
    report.turns += len(encoded.ends)
    for token_id in encoded.ends:
        if token_id is not None:
            report.turns_with_end += 1
            report.end_of_turn = report.end_of_turn or tokenizer.convert_ids_to_tokens(token_id)
    for start in range(0, n_tokens, context):
        trained = encoded.trained[start : start + context]
        n_labels = sum(trained[1:])
        report.pieces += 1
        report.trained_tokens += n_labels
        if n_labels == 0:
            report.zero_label_pieces += 1
            if len(report.zero_label_rows) < MAX_NAMED_ROWS and number not in report.zero_label_rows[-1:]:
                report.zero_label_rows.append(number)
        yield number, encoded.ids[start : start + context], trained


def _encode_document(document: Document, tokenizer: Any) -> _Encoded:
    """Text as the tokenizer opens it (with its own first token, if any) and the end-of-sequence token."""
    ids = list(tokenizer(document.text, verbose=False).input_ids)
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    return _Encoded(ids, [True] * len(ids))


def _encode_rendered(rendered: Rendered, tokenizer: Any) -> _Encoded:
    """Token ids of a conversation, trained where the assistant speaks.

    A span's tokens are contiguous, from the first that ends inside it to the last that begins in it:
    byte-level tokenizers give tokens of nothing but spaces an empty extent, which an overlap of each token
    by itself would miss. After the end-of-turn token a template may write a line break; a model stops
    before that, so it is not trained.
    """
    encoding = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoding.input_ids), encoding.offset_mapping
    trained = [False] * len(ids)
    added = tokenizer.added_tokens_decoder
    ends: list[int | None] = []
    for start, end in rendered.spans:
        inside = [position for position, (low, high) in enumerate(offsets) if high > start and low < end]
        if not inside:
            ends.append(None)
            continue
        first, last = inside[0], inside[-1]
        tail = last
        while tail > first and ids[tail] not in added and not tokenizer.decode([ids[tail]]).strip():
            tail -= 1
        is_end = ids[tail] in added
        ends.append(ids[tail] if is_end else None)
        last = tail if is_end else last
        trained[first : last + 1] = [True] * (last + 1 - first)
    return _Encoded(ids, trained, tuple(ends))


def highlight_sample(row: TokenRow, tokenizer: Any) -> list[tuple[str, bool]]:
    """The row as the model will see it: (text, trained) runs whose joined text is exactly the decoded row."""

    def decode(end: int) -> str:
        text: str = tokenizer.decode(
            row.ids[:end].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    whole = decode(len(row.ids))
    runs: list[tuple[str, bool]] = []
    written, start = 0, 0
    changes = np.flatnonzero(np.diff(row.trained)) + 1
    for end in [*changes.tolist(), len(row.ids)]:
        # A character can take several tokens: a run ends where its decoded prefix agrees with the whole.
        prefix = decode(end)
        agreed = len(whole) if end == len(row.ids) else shared_length(prefix, whole)
        agreed = max(agreed, written)
        if agreed > written:
            runs.append((whole[written:agreed], bool(row.trained[start])))
        written, start = agreed, end
    return runs
