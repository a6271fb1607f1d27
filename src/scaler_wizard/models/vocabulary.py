"""New tokens for a model that was trained without them.

Each new token starts as the mean of the embeddings of the pieces it replaces (Hewitt 2021; Gee et al.
2022, "Fast Vocabulary Transfer"), in the input embeddings and, where the head is untied, in the head: the
model then reads it about as it read the pieces. Everything is checked before anything is changed.

Growing is deterministic and stored in no adapter: to use an adapter that was trained on a grown model,
grow its base with the same tokens first, or export the merged model.
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from tokenizers import AddedToken
from torch import Tensor

from scaler_wizard.errors import IncompatibleModelError, SpecError

MAX_NEW_TOKENS = 4096
MAX_TOKEN_BYTES = 128


@dataclass(frozen=True)
class VocabularyGrowth:
    """What was added: texts, their ids, the ids each was spelled with before, and embedding row counts."""

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]
    rows_before: int
    rows_after: int
    tied: bool


def grow_vocabulary(model: Any, tokenizer: Any, tokens: Sequence[str]) -> VocabularyGrowth:
    """Give model and tokenizer one new token per text, in place.

    Unused rows that a model keeps for padding are used first; the matrix grows only when they run out.
    Tied embeddings stay tied.

    Raises:
        SpecError: a text that is empty, doubled, already one token, too long, or holds control
            characters (which GGUF and chat templates cannot carry); too many texts.
        IncompatibleModelError: an adapter is attached, embeddings are tied in one place and not in
            another, other weights have a row per token, or the tokenizer cannot spell a text.
    """
    _check_texts(tokens)
    tied = _check_model(model, tokenizer)
    parts, grown = _rehearse(tokenizer, tokens)
    rows_before = model.get_input_embeddings().weight.shape[0]
    rows_after = max(rows_before, len(grown))

    tokenizer.add_tokens(_added(tokens))
    ids = tuple(int(tokenizer.convert_tokens_to_ids(token)) for token in tokens)
    if rows_after > rows_before:
        with torch.random.fork_rng():
            model.resize_token_embeddings(rows_after, mean_resizing=False)
    matrices = [model.get_input_embeddings().weight]
    if not tied and model.get_output_embeddings() is not None:
        head = model.get_output_embeddings()
        matrices += [head.weight] if getattr(head, "bias", None) is None else [head.weight, head.bias]
    for matrix in matrices:
        _set_rows(matrix, ids, parts)
    assert _is_tied(model) == tied, "resizing changed the tying of the embeddings"
    return VocabularyGrowth(tuple(tokens), ids, parts, rows_before, rows_after, tied)


def missing_tokens(tokenizer: Any, tokens: Sequence[str]) -> list[str]:
    """Those of `tokens` that the tokenizer does not hold as one token, in order."""
    known = tokenizer.get_added_vocab()
    return [token for token in tokens if token not in known]


def _check_texts(tokens: Sequence[str]) -> None:
    if not tokens or len(tokens) > MAX_NEW_TOKENS:
        raise SpecError(
            f"{len(tokens):,} new tokens", f"1 to {MAX_NEW_TOKENS:,}", "correct vocabulary.add_tokens"
        )
    doubled = sorted({token for token in tokens if tokens.count(token) > 1})
    if doubled:
        raise SpecError(
            f"the new token {doubled[0]!r} twice", "every token once", "correct vocabulary.add_tokens"
        )
    for token in tokens:
        if not token or not token.strip():
            raise SpecError(
                f"the new token {token!r}", "a text that is not blank", "correct vocabulary.add_tokens"
            )
        # Cc control, Cs lone surrogate, Co private use, Cn unassigned: none survives every export format.
        hidden = [char for char in token if unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn")]
        if hidden:
            raise SpecError(f"the new token {token!r} holds {hidden[0]!r}", "printable characters only")
        if len(token.encode()) > MAX_TOKEN_BYTES:
            raise SpecError(f"a new token of {len(token.encode())} bytes", f"at most {MAX_TOKEN_BYTES} bytes")


def _is_tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _check_model(model: Any, tokenizer: Any) -> bool:
    """True if the embeddings are tied; raises where they cannot grow."""
    if isinstance(model, PeftModel):
        raise IncompatibleModelError(
            "new vocabulary for a model with an adapter", "a base model", "grow the vocabulary, then attach"
        )
    tied = _is_tied(model)
    if tied != bool(model.config.get_text_config().tie_word_embeddings):
        raise IncompatibleModelError(
            f"embeddings that are {'tied' if tied else 'not tied'} while the configuration says otherwise",
            "weights and config.json that agree",
            "load the model from its original files",
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise IncompatibleModelError(
            f"a tokenizer with {len(tokenizer):,} tokens for {rows:,} embedding rows",
            "the model's own tokenizer",
        )
    head = model.get_output_embeddings()
    own = {id(model.get_input_embeddings().weight)} | {
        id(value) for value in (head.parameters() if head else ())
    }
    for name, value in model.named_parameters():
        if id(value) not in own and value.dim() > 1 and value.shape[0] == rows and "embed" in name:
            raise IncompatibleModelError(
                f"a second table with a row per token ({name})",
                "input embeddings and an output head only",
                "leave vocabulary.add_tokens empty for this model",
            )
    return tied


def _added(tokens: Sequence[str]) -> list[AddedToken]:
    return [AddedToken(token, normalized=False, special=False) for token in tokens]


def _rehearse(tokenizer: Any, tokens: Sequence[str]) -> tuple[tuple[tuple[int, ...], ...], Any]:
    """The pieces of every text, and a copy of the tokenizer in which each was tried as one token."""
    parts = []
    for token in tokens:
        ids = tokenizer(token, add_special_tokens=False).input_ids
        if len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids[0]) != tokenizer.unk_token:
            raise SpecError(f"{token!r} is one token already", "texts that take several tokens now")
        known = tuple(int(i) for i in ids if i != tokenizer.unk_token_id)
        if not known:
            raise IncompatibleModelError(
                f"a tokenizer that cannot spell {token!r}",
                "pieces to start the new embedding from",
                "remove it from vocabulary.add_tokens",
            )
        parts.append(known)
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(_added(tokens))
    for token in tokens:
        ids = grown(token, add_special_tokens=False).input_ids
        if ids != [grown.convert_tokens_to_ids(token)] or grown.decode(ids).strip() != token.strip():
            raise IncompatibleModelError(
                f"a tokenizer that does not keep {token!r} as one token",
                "a text that is read back as written (byte-level decoders garble letters like ü here)",
                "remove it from vocabulary.add_tokens",
            )
    return tuple(parts), grown


@torch.no_grad()
def _set_rows(matrix: Tensor, ids: Sequence[int], parts: Sequence[Sequence[int]]) -> None:
    """Row of each id = mean (float32) of its parts' rows, all read before any is written."""
    means = [matrix[list(pieces)].float().mean(dim=0) for pieces in parts]
    for index, mean in zip(ids, means, strict=True):
        matrix[index] = mean.to(matrix.dtype)
