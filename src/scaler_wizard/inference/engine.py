"""Continuous batching: requests enter a bounded KV cache as others leave it, one decode step after another.

Prompts are read up to their last token and compared with what the cache already holds, so that a common
prefix is read once; the last prompt token goes through the decode step of all active rows, which alone
produces logits. Works for models that `supports_slots`. Knows no tokenizer and no probe.

The result of a request does not depend on what runs beside it, up to the rounding of matrix products, whose
order of summation follows the batch: two tokens whose logits differ by less than that may swap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scaler_wizard.inference.admission import Admission, copy_prefixes
from scaler_wizard.inference.attention import (
    DecodeStep,
    Piece,
    PrefillStep,
    SlotStep,
    pack_pieces,
    slots_attached,
    supports_slots,
)
from scaler_wizard.inference.continuations import Continuations
from scaler_wizard.inference.modes import (
    DEFAULT_LIMITS,
    InferenceLimits,
    cache_positions,
    device_of,
    measuring,
)
from scaler_wizard.inference.requests import Generation, Request
from scaler_wizard.inference.slab import Row
from scaler_wizard.models.rope import base_model


class Engine:
    """Generates for requests that may be submitted at any time; use it inside `serving`."""

    def __init__(self, model: nn.Module, limits: InferenceLimits = DEFAULT_LIMITS) -> None:
        assert supports_slots(model)
        self._model: Any = base_model(model)
        self._device = device_of(model)
        self._chunk = limits.chunk_for(self._device)
        self._admission = Admission(cache_positions(self._model, limits), limits.max_rows)
        self._continuations = Continuations()
        self._submitted = 0
        self.prefilled_tokens = 0
        """Prompt tokens read so far; those copied from another request's cache are not counted."""

    @property
    def unfinished(self) -> int:
        """Requests waiting or generating."""
        return self._admission.unfinished

    @property
    def reserved_tokens(self) -> int:
        """KV positions held now."""
        return self._admission.reserved_tokens

    def submit(self, request: Request) -> int:
        """Queue a request; returns its number, counted from 0 in the order of submission."""
        length = len(request.prompt)
        # The last token is always read in the decode step, for its logits.
        row = Row(self._submitted, request, list(request.prompt), length, length - 1, request.cache_length)
        self._submitted += 1
        self._admission.push(row)
        return row.index

    def step(self) -> list[tuple[int, Generation]]:
        """Admit what fits and generate one token for each active request; returns those that ended."""
        for entries in self._admission.admit():
            copy_prefixes(entries)
            self._prefill([entry.row for entry in entries])
        self._admission.settle()
        step = DecodeStep(self._admission.slabs, self._device)
        if not step.rows:
            return []
        rows = step.rows
        logits_BV = self._forward([row.tokens[-1] for row in rows], [row.cached for row in rows], step)
        return [(row.index, result) for row, result in self._continuations.advance(rows, logits_BV)]

    def _forward(
        self, tokens: Sequence[int], positions: Sequence[int], step: SlotStep, kept: int = 0
    ) -> Tensor:
        """Logits [kept tokens, vocabulary] of one packed row; all tokens are kept when `kept` is 0."""
        output = self._model(
            input_ids=torch.tensor([tokens], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            logits_to_keep=kept,
            slots=step,
        )
        logits: Tensor = output.logits[0]
        return logits

    def _prefill(self, rows: Sequence[Row]) -> None:
        """Read all prompt tokens but the last, packed into passes of at most a chunk of tokens."""
        for pieces in pack_pieces([Piece(row, row.cached, row.read_to) for row in rows], self._chunk):
            self._read(pieces)
            for piece in pieces:
                piece.row.cached = piece.end

    def _read(self, pieces: Sequence[Piece]) -> None:
        tokens = [token for piece in pieces for token in piece.row.tokens[piece.start : piece.end]]
        positions = [position for piece in pieces for position in range(piece.start, piece.end)]
        # Of the logits, which nobody reads, as few as transformers allows.
        self._forward(tokens, positions, PrefillStep(pieces, self._device), kept=1)
        self.prefilled_tokens += len(tokens)


@contextmanager
def serving(model: nn.Module, limits: InferenceLimits = DEFAULT_LIMITS) -> Iterator[Engine]:
    """An engine for as long as the block lasts; the model's mode and attention are restored at the end.

    The model must not be used for anything else inside.
    """
    with measuring(model), slots_attached(model):
        yield Engine(model, limits)
