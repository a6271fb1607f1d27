"""Continuous batching: requests enter a bounded KV cache as others leave it, one decode step after another.

Prompts are read up to their last token and compared with what the cache already holds, so that a common
prefix is read once; the last prompt token goes through the decode step of all active rows, which alone
produces logits. Works for models that `supports_slots`. Knows no tokenizer and no probe.

The result of a request does not depend on what runs beside it, up to the rounding of matrix products, whose
order of summation follows the batch: two tokens whose logits differ by less than that may swap.
"""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from scaler_wizard.inference.attention import (
    DecodeStep,
    Piece,
    PrefillStep,
    SlotStep,
    slots_attached,
    supports_slots,
)
from scaler_wizard.inference.logits import process_logits
from scaler_wizard.inference.modes import DEFAULT_LIMITS, InferenceLimits, device_of, measuring
from scaler_wizard.inference.requests import Generation, Request
from scaler_wizard.inference.sampling import choose_tokens
from scaler_wizard.inference.slab import Row, Slab, common_length, share_prefix
from scaler_wizard.models.rope import base_model

# A shorter common prefix is read again: copying it would make its reader wait for its source.
MIN_SHARED: Final = 16
# Requests that need at least this share of the longest get slots as long as that one's.
MIN_FILL: Final = 0.7


class Engine:
    """Generates for requests that may be submitted at any time; use it inside `serving`."""

    def __init__(self, model: nn.Module, limits: InferenceLimits = DEFAULT_LIMITS) -> None:
        assert supports_slots(model)
        self._model: Any = base_model(model)
        self._device = device_of(model)
        self._limits = limits
        self._slabs: list[Slab] = []
        self._waiting: list[tuple[int, tuple[int, ...], int, Row]] = []
        self._generators: dict[int, random.Random] = {}
        self._submitted = 0
        self.prefilled_tokens = 0
        """Prompt tokens read so far; those copied from another request's cache are not counted."""

    @property
    def unfinished(self) -> int:
        """Requests waiting or generating."""
        return len(self._waiting) + sum(len(slab.active_rows()) for slab in self._slabs)

    @property
    def reserved_tokens(self) -> int:
        """KV positions held now."""
        return sum(slab.tokens for slab in self._slabs)

    def submit(self, request: Request) -> int:
        """Queue a request; returns its number, counted from 0 in the order of submission."""
        row = Row(self._submitted, request, list(request.prompt))
        self._submitted += 1
        # Longest first: what does not fit in memory shows at once, and rows of like length run together.
        # Equal lengths by their tokens, so that samples of one prompt stand together and share it.
        insort(self._waiting, (-request.cache_length, request.prompt, row.index, row))
        return row.index

    def step(self) -> list[tuple[int, Generation]]:
        """Admit what fits and generate one token for each active request; returns those that ended."""
        self._admit()
        step = DecodeStep(self._slabs, self._device)
        if not step.rows:
            return []
        rows = step.rows
        logits_BV = self._forward([row.tokens[-1] for row in rows], [row.cached for row in rows], step)
        requests = [row.request for row in rows]
        logits_BV = process_logits(
            logits_BV, requests, lambda at: rows[at].tokens[len(requests[at].prompt) :]
        )
        temperatures = [row.request.temperature for row in rows]
        chosen = choose_tokens(logits_BV, temperatures, [self._draw(row) for row in rows])
        ended = []
        for row, token in zip(rows, chosen, strict=True):
            row.cached += 1
            result = _advance(row, token)
            if result is not None:
                row.active = False
                self._generators.pop(row.index, None)
                ended.append((row.index, result))
        return ended

    def _draw(self, row: Row) -> float:
        """The request's next uniform number; Python's generator gives the same one on every device."""
        return self._generators[row.index].random() if row.request.temperature > 0 else 0.0

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

    def _admit(self) -> None:
        """Move waiting requests into the cache while there is room, and read their prompts."""
        active = sum(len(slab.active_rows()) for slab in self._slabs)
        # Rows by the round in which they are read: a row whose prefix is being read waits one round for it.
        rounds: list[list[tuple[Row, Row | None, int]]] = []
        entered: dict[Row, int] = {}
        while self._waiting and active < self._limits.max_rows:
            row = self._waiting[0][-1]
            slab = self._slab_for(row.request.cache_length)
            if slab is None:
                break
            del self._waiting[0]
            active += 1
            source, shared = self._source(row)
            entered[row] = entered[source] + 1 if source in entered else 0
            free = slab.free_slots()
            row.slab = slab
            row.slot = source.slot if source and source.slab is slab and source.slot in free else free[0]
            if source is not None and source not in entered:
                # Now, while it stands where it stands: its slot may be the next to be taken.
                share_prefix(source, row, shared)
                source = None
            slab.rows[row.slot] = row
            if len(rounds) == entered[row]:
                rounds.append([])
            rounds[entered[row]].append((row, source, shared))
            if row.request.temperature > 0:
                self._generators[row.index] = random.Random(row.request.seed)
        for entries in rounds:
            for row, source, shared in entries:
                if source is not None:
                    share_prefix(source, row, shared)
            self._prefill([row for row, _, _ in entries])
        self._slabs = [slab for slab in self._slabs if slab.active_rows()]
        for slab in self._slabs:
            slab.compact()

    def _source(self, row: Row) -> tuple[Row | None, int]:
        """The row in the cache with the longest common prefix, and its length; (None, 0) if too short."""
        # The last token is always read, for its logits.
        prompt = row.tokens[: len(row.request.prompt) - 1]
        best: Row | None = None
        longest = MIN_SHARED - 1
        for slab in self._slabs:
            for held in slab.rows:
                if held is None or held.tokens[: longest + 1] != prompt[: longest + 1]:
                    continue
                # A row that has just entered will have read its prompt but the last token by then.
                there = max(held.cached, len(held.request.prompt) - 1)
                shared = min(common_length(held.tokens, prompt), there)
                if shared > longest:
                    best, longest = held, shared
        return (None, 0) if best is None else (best, longest)

    def _slab_for(self, needed: int) -> Slab | None:
        """The smallest slab with a free slot for `needed` tokens, a new one, or None: full."""
        close = self._fitting(needed)
        if close is not None and close.capacity * MIN_FILL <= needed:
            return close
        if self._limits.cache_tokens - self.reserved_tokens < needed:
            self._give_back()
        n_slots = (self._limits.cache_tokens - self.reserved_tokens) // needed
        if n_slots < 1 and self._slabs:
            return self._fitting(needed)
        alike = 0
        for length, *_ in self._waiting:
            if -length < needed * MIN_FILL or alike == self._limits.max_rows:
                break
            alike += 1
        self._slabs.append(Slab(needed, [None] * max(1, min(n_slots, alike))))
        return self._slabs[-1]

    def _fitting(self, needed: int) -> Slab | None:
        slabs = [slab for slab in self._slabs if slab.capacity >= needed and slab.free_slots()]
        return min(slabs, key=lambda slab: slab.capacity, default=None)

    def _give_back(self) -> None:
        """Free slabs without active rows, and the empty slots of those that are at most half full."""
        self._slabs = [slab for slab in self._slabs if slab.active_rows()]
        for slab in self._slabs:
            n_active = len(slab.active_rows())
            if 2 * n_active <= len(slab.rows):
                slab.compact()
                slab.shrink(n_active)

    def _prefill(self, rows: Sequence[Row]) -> None:
        """Read all prompt tokens but the last, packed into passes of at most `chunk_tokens` tokens."""
        pieces: list[Piece] = []
        room = self._limits.chunk_tokens
        for row in rows:
            end = len(row.request.prompt) - 1
            while row.cached < end:
                stop = min(end, row.cached + room)
                pieces.append(Piece(row, row.cached, stop))
                room -= stop - row.cached
                row.cached = stop
                if room == 0:
                    self._read(pieces)
                    pieces, room = [], self._limits.chunk_tokens
        if pieces:
            self._read(pieces)

    def _read(self, pieces: Sequence[Piece]) -> None:
        tokens = [token for piece in pieces for token in piece.row.tokens[piece.start : piece.end]]
        positions = [position for piece in pieces for position in range(piece.start, piece.end)]
        # Of the logits, which nobody reads, as few as transformers allows.
        self._forward(tokens, positions, PrefillStep(pieces, self._device), kept=1)
        self.prefilled_tokens += len(tokens)


def _advance(row: Row, token: int) -> Generation | None:
    """Append a chosen token; the finished continuation where that ends it."""
    request, length = row.request, len(row.request.prompt)
    if token in request.stop_ids:
        return Generation(tuple(row.tokens[length:]), "stop")
    row.tokens.append(token)
    if len(row.tokens) - length == request.max_new_tokens:
        return Generation(tuple(row.tokens[length:]), "length")
    return None


@contextmanager
def serving(model: nn.Module, limits: InferenceLimits = DEFAULT_LIMITS) -> Iterator[Engine]:
    """An engine for as long as the block lasts; the model's mode and attention are restored at the end.

    The model must not be used for anything else inside.
    """
    with measuring(model), slots_attached(model):
        yield Engine(model, limits)
