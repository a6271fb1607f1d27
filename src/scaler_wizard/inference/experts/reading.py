"""Reading contents into slots, and what a router is given of them. Knows rows; knows no schedule.

Training a router reads with `observe`, serving with the same functions: what it learns is what it gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from scaler_wizard.inference.attention import Piece, PrefillStep, SlotStep, pack_pieces, slots_attached
from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.counters import Counters
from scaler_wizard.inference.experts.forward import PackedTokens, packed_logits, tapped
from scaler_wizard.inference.experts.layers import (
    AdapterWeights,
    StackCache,
    adapters_attached,
    applying,
    plan_pass,
)
from scaler_wizard.inference.experts.prompt import Prompt
from scaler_wizard.inference.experts.routing import Observed
from scaler_wizard.inference.experts.rows import RoutedRow, content_row, give_slots, packed_tokens
from scaler_wizard.inference.modes import InferenceLimits, cache_positions, current_limits, measuring

# Hidden states for the router are kept beside keys and values, as one more layer of a slab.
HIDDEN: Final = -1


class Reader:
    """Passes over rows of one bank's model, with adapters."""

    def __init__(self, bank: Bank, chunk: int) -> None:
        self._bank = bank
        self._model: Any = bank.model
        self.device: torch.device = bank.model.device
        self._chunk = chunk
        self._decode_stacks, self._read_stacks = StackCache(), StackCache()

    def decode(self, rows: Sequence[RoutedRow], step: SlotStep) -> Tensor:
        """Logits [rows, vocabulary] after each row's last token, which is read."""
        positions = [at for row in rows for at in row.rotary(row.cached, row.cached + 1)]
        packed = PackedTokens([row.tokens[-1] for row in rows], positions)
        with applying(plan_pass([row.weights for row in rows], self._decode_stacks, self.device)):
            return packed_logits(self._model, packed, step, 0)

    def read(self, rows: Sequence[RoutedRow], *, hidden_after: int | None = None) -> None:
        """Read rows from what is in their slots up to `read_to`, in passes of at most a chunk of tokens.

        hidden_after: keep the hidden states after that layer in the slots, too.
        """
        # Rows of one adapter stand together; those of the base come first.
        ordered = sorted(rows, key=lambda row: (row.adapter is not None, row.adapter or ""))
        for pieces in pack_pieces([Piece(row, row.cached, row.read_to) for row in ordered], self._chunk):
            adapters = [
                weights for piece in pieces for weights in _routed(piece).weights_at(piece.start, piece.end)
            ]
            self._pass(pieces, adapters, hidden_after)
            for piece in pieces:
                piece.row.cached = piece.end

    def observe(self, router: Observed, rows: Sequence[RoutedRow]) -> list[tuple[Tensor, Counters]]:
        """What the router is given of each row, whose content has been read, and the work that took.

        A suffix router is given it by `read_with_suffix`, while the content is read.
        """
        if router.kind == "features":
            return [(mean_hidden(row, text_only=router.text_only), Counters()) for row in rows]
        assert router.kind == "early"
        return self._early(router, self._weights_of(router), rows)

    def read_with_suffix(self, router: Observed, rows: Sequence[RoutedRow]) -> list[tuple[Tensor, Counters]]:
        """Read contents with a suffix router's tokens behind each, in the same passes: what it is given.

        What follows overwrites the suffix's positions. In a pass of their own the suffixes would cost an
        attention call a row and layer for six tokens each.
        """
        adapter, width = self._weights_of(router), len(router.suffix)
        labels = torch.tensor(router.label_tokens, device=self.device)
        found: dict[RoutedRow, Tensor] = {}
        for row in rows:
            row.tokens += router.suffix
        ends = [Piece(row, row.cached, row.n_content + width) for row in rows]
        for pieces in pack_pieces(ends, self._chunk):
            adapters: list[AdapterWeights | None] = []
            ended: list[RoutedRow] = []
            last: list[int] = []
            for piece in pieces:
                row = _routed(piece)
                plain = max(0, min(piece.end, row.n_content) - piece.start)
                adapters += [None] * plain + [adapter] * (piece.end - piece.start - plain)
                if piece.end == row.n_content + width:
                    ended.append(row)
                    last.append(len(adapters) - 1)
                row.cached = min(piece.end, row.n_content)
            kept = torch.tensor(last, device=self.device) if last else 1
            logits = self._logits(pieces, adapters, kept)
            if last:
                found |= zip(ended, logits[:, labels].float(), strict=True)
        for row in rows:
            del row.tokens[row.n_content :]
        return [(found[row], Counters(router_tokens=width)) for row in rows]

    def _weights_of(self, router: Observed) -> AdapterWeights | None:
        return None if router.adapter is None else self._bank.adapter(router.adapter).weights

    def _early(
        self, router: Observed, adapter: AdapterWeights | None, rows: Sequence[RoutedRow]
    ) -> list[tuple[Tensor, Counters]]:
        """Mean hidden states of a pass over the contents with the router's adapter, in slots of its own."""
        found: list[tuple[Tensor, Counters]] = []
        for group in _groups(rows, self._chunk):
            scratch = [content_row(row.index, row.prompt) for row in group]
            give_slots(scratch)
            for pieces in pack_pieces([Piece(row, 0, row.n_content) for row in scratch], self._chunk):
                adapters = [adapter] * sum(piece.end - piece.start for piece in pieces)
                self._pass(pieces, adapters, router.layer, stop=True)
            found += [
                (mean_hidden(row), Counters(router_forwards=1, router_tokens=row.n_content))
                for row in scratch
            ]
        return found

    def _pass(
        self,
        pieces: Sequence[Piece],
        adapters: Sequence[AdapterWeights | None],
        hidden_after: int | None,
        *,
        stop: bool = False,
    ) -> None:
        # Of the logits, which nobody reads, as few as transformers allows.
        if hidden_after is None:
            self._logits(pieces, adapters, 1)
            return
        with tapped(self._model, hidden_after, stop=stop) as hidden:
            self._logits(pieces, adapters, 1)
        _keep_hidden(pieces, hidden[0])

    def _logits(
        self, pieces: Sequence[Piece], adapters: Sequence[AdapterWeights | None], kept: int | Tensor
    ) -> Tensor:
        step = PrefillStep(pieces, self.device)
        with applying(plan_pass(adapters, self._read_stacks, self.device)):
            return packed_logits(self._model, packed_tokens(pieces), step, kept)


def _routed(piece: Piece) -> RoutedRow:
    assert isinstance(piece.row, RoutedRow)
    return piece.row


def _groups(rows: Sequence[RoutedRow], most: int) -> Iterator[list[RoutedRow]]:
    """Consecutive rows of at most so many content tokens together; a longer one stands alone."""
    group: list[RoutedRow] = []
    for row in rows:
        if group and sum(held.n_content for held in group) + row.n_content > most:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _keep_hidden(pieces: Sequence[Piece], hidden: Tensor) -> None:
    """Write hidden states [1, N, h] to the slots of their tokens: they are copied and moved like keys."""
    first = 0
    for piece in pieces:
        assert piece.row.slab is not None
        states = hidden[:, None, first : first + piece.end - piece.start]
        kept, _ = piece.row.slab.layer(HIDDEN, states, states[..., :0])
        kept[piece.row.slot, 0, piece.start : piece.end] = states[0, 0]
        first += piece.end - piece.start


def mean_hidden(row: RoutedRow, *, text_only: bool = False) -> Tensor:
    """[h] float32: the kept hidden states' mean over the content's tokens, or over those of no picture."""
    assert row.slab is not None
    states, _ = row.slab.kept(HIDDEN)
    content = states[row.slot, 0, : row.n_content].float()
    if text_only and row.prompt.embedded is not None:
        content = content[~row.prompt.embedded.visual.to(content.device)]
    return content.mean(0)


def observe(
    bank: Bank, router: Observed, prompts: Sequence[Prompt], *, limits: InferenceLimits | None = None
) -> list[Tensor]:
    """What a router would be given of each content: [h] or [labels], float32, on the CPU.

    router: only its attributes are read, so that one that is yet to be trained will do.
    """
    limits = limits or current_limits()
    found: list[Tensor] = []
    with measuring(bank.model), slots_attached(bank.model), adapters_attached(bank.linears):
        reader = Reader(bank, limits.chunk_for(bank.model.device))
        room = cache_positions(bank.model, limits)
        longest = max((len(prompt.tokens) for prompt in prompts), default=0) + len(router.suffix)
        at_once = max(1, min(limits.max_rows, room // max(1, longest)))
        for first in range(0, len(prompts), at_once):
            rows = [
                content_row(i, prompt, cache_length=len(prompt.tokens) + len(router.suffix))
                for i, prompt in enumerate(prompts[first : first + at_once])
            ]
            give_slots(rows)
            if router.kind == "features":
                reader.read(rows, hidden_after=router.layer)
            suffix = router.kind == "suffix"
            observed = reader.read_with_suffix(router, rows) if suffix else reader.observe(router, rows)
            # Out of inference mode: these go on into training.
            found += [value.cpu() for value, _ in observed]
    return [value.clone() for value in found]
