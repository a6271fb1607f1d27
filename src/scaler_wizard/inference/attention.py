"""Attention over the slots of a KV cache, registered with transformers as "scaler_slots".

A forward pass gets one row of packed tokens, [1, N], and a `SlotStep` through the model's keyword arguments.
The step knows which slot and position each token belongs to: every layer hands it new keys and values, which
it writes in place, and queries, which it answers from the slots. Nothing is kept on the model, no mask of the
model's is built, and the cache is neither concatenated nor copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from scaler_wizard.inference.modes import needs_whole_rows
from scaler_wizard.inference.slab import Row, Slab
from scaler_wizard.models.rope import base_model

NAME: Final = "scaler_slots"
# What one more attention call costs, in bytes of KV cache read in that time: 10 to 15 microseconds at
# 10 GB/s on a CPU. A GPU reads a thousand times as much while it launches one kernel.
CPU_CALL_BYTES: Final = 2**17
GPU_CALL_BYTES: Final = 2**25


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer turns queries and keys into weights."""

    scaling: float | None
    window: int | None
    """Tokens a query sees, itself included; all before it when None."""
    softcap: float | None


class SlotStep(Protocol):
    """The tokens of one forward pass and where they belong."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Write keys and values of the N new tokens, and answer their queries.

        query: [1, heads, N, head_dim]. key, value: [1, key-value heads, N, head_dim].
        Returns [1, N, heads, head_dim].
        """


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    slots: SlotStep | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in every layer; see `SlotStep.attend`."""
    assert slots is not None, f"{type(module).__name__} did not receive its slots"
    assert attention_mask is None, "slots know their own masks"
    assert options.get("s_aux") is None, "attention with sinks is not plain softmax"
    assert options.get("position_bias") is None, "attention with a position bias is not plain softmax"
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    return slots.attend(layer, query, key, value, Scores(scaling, sliding_window, softcap)), None


# Without a mask function of this name, transformers builds no mask at all.
AttentionInterface.register(NAME, slot_attention)


def supports_slots(model: nn.Module) -> bool:
    """Whether a model's layers are causal softmax attention that reaches this function.

    Others run whole rows (`whole_rows`): length-dependent rotary frequencies, prefix tuning, attention sinks,
    chunked or linear attention, recurrent states, and models with attention code of their own.
    """
    config: Any = getattr(model, "config", None)
    decoder = base_model(model)
    return (
        bool(getattr(decoder, "_supports_attention_backend", False))
        and not getattr(decoder, "_is_stateful", False)
        and not getattr(config, "is_encoder_decoder", False)
        and not needs_whole_rows(model)
        and getattr(config, "attention_chunk_size", None) is None
        and config.model_type != "gpt_oss"
        and bool(getattr(config, "is_causal", True))
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
    )


@contextmanager
def slots_attached(model: nn.Module) -> Iterator[None]:
    """Switch a transformers model to "scaler_slots", and back at the end.

    Its decoder alone: a vision tower's attention is not causal and keeps its own.
    """
    base: Any = base_model(model)
    decoder = base.get_decoder()
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation(NAME)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


def _weigh(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scores: Scores) -> Tensor:
    """softmax(query key^T) value. query [n, h, q, d], key and value [n, h, k, d], mask additive or None."""
    if scores.softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scores.scaling)
    scaling = query.shape[-1] ** -0.5 if scores.scaling is None else scores.scaling
    logits = query @ key.transpose(2, 3) * scaling
    logits = (logits / scores.softcap).tanh() * scores.softcap
    logits = logits if mask is None else logits + mask
    return logits.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where True, -inf where False."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def split_lengths(lengths: Sequence[int], call_tokens: int) -> list[tuple[int, int]]:
    """Cut a list of lengths into runs [start, end) that are read together, each up to its longest.

    A run ends where reading the next slot with it would read more positions past the slots' own lengths than
    another attention call costs, `call_tokens`.
    """
    runs: list[tuple[int, int]] = []
    start, longest = 0, 0
    for i, length in enumerate(lengths):
        raised = max(longest, length)
        if i > start and (raised - longest) * (i - start) + raised - length > call_tokens:
            runs.append((start, i))
            start, raised = i, length
        longest = raised
    return [*runs, (start, len(lengths))] if lengths else []


class DecodeStep:
    """One new token for every active row of some slabs, whose active slots are their first ones."""

    def __init__(self, slabs: Sequence[Slab], device: torch.device) -> None:
        self._parts: list[_DecodePart] = []
        self.rows: list[Row] = []
        for slab in slabs:
            rows = slab.active_rows()
            if rows:
                self._parts.append(_DecodePart(slab, len(self.rows), [row.cached for row in rows], device))
                self.rows += rows

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """See `SlotStep.attend`."""
        outputs = [part.attend(layer, query, key, value, scores) for part in self._parts]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None]


class _DecodePart:
    """The rows of one slab in a decode step; their tokens stand at `first` and after in the packed row."""

    def __init__(self, slab: Slab, first: int, positions: list[int], device: torch.device) -> None:
        self._slab = slab
        self._tokens = slice(first, first + len(positions))
        self._positions = positions
        self._at_B = torch.tensor(positions, device=device)
        self._slots_B = torch.arange(len(positions), device=device)
        self._call_bytes = CPU_CALL_BYTES if device.type == "cpu" else GPU_CALL_BYTES
        self._runs: dict[int | None, list[tuple[int, int, int, int, Tensor | None]]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Returns [rows, heads, head_dim]."""
        keys, values = self._slab.layer(layer, key, value)
        # [1, heads, N, d] -> [rows, heads, d]
        keys[self._slots_B, :, self._at_B] = key[0, :, self._tokens].transpose(0, 1)
        values[self._slots_B, :, self._at_B] = value[0, :, self._tokens].transpose(0, 1)
        n_rows, n_heads, width = len(self._positions), query.shape[1], query.shape[3]
        # Queries that share a key-value head stand side by side, so that keys are read once for all of them.
        grouped = query[0, :, self._tokens].transpose(0, 1).reshape(n_rows, keys.shape[1], -1, width)
        outputs = [
            _weigh(
                grouped[start:end],
                keys[start:end, :, low:high],
                values[start:end, :, low:high],
                mask,
                scores,
            )
            for start, end, low, high, mask in self._planned(keys, scores.window)
        ]
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return joined.reshape(n_rows, n_heads, -1)

    def _planned(self, keys: Tensor, window: int | None) -> list[tuple[int, int, int, int, Tensor | None]]:
        """(slot, end slot, position, end position, mask) of each call; the same in every layer."""
        if window not in self._runs:
            # Keys and values, all heads of one token.
            token_bytes = 2 * keys.shape[1] * keys.shape[3] * keys.element_size()
            runs = split_lengths(self._positions, self._call_bytes // token_bytes)
            self._runs[window] = [self._run(start, end, window, keys.dtype) for start, end in runs]
        return self._runs[window]

    def _run(
        self, start: int, end: int, window: int | None, dtype: torch.dtype
    ) -> tuple[int, int, int, int, Tensor | None]:
        shortest, longest = min(self._positions[start:end]), max(self._positions[start:end])
        low = 0 if window is None else max(0, shortest + 1 - window)
        if shortest == longest:
            return start, end, low, longest + 1, None
        at_1K = torch.arange(low, longest + 1, device=self._at_B.device)[None]
        last_n1 = self._at_B[start:end, None]
        seen = at_1K <= last_n1
        if window is not None:
            seen &= at_1K > last_n1 - window
        return start, end, low, longest + 1, _additive(seen, dtype)[:, None, None]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `start` to `end` of a row; all before them are in its slot."""

    row: Row
    start: int
    end: int


def pack_pieces(pieces: Sequence[Piece], chunk: int) -> Iterator[list[Piece]]:
    """Cut pieces, in their order, into passes of at most `chunk` tokens; empty pieces are left out."""
    packed: list[Piece] = []
    room = chunk
    for piece in pieces:
        start = piece.start
        while start < piece.end:
            stop = min(piece.end, start + room)
            packed.append(Piece(piece.row, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield packed
                packed, room = [], chunk
    if packed:
        yield packed


class PrefillStep:
    """Consecutive tokens of several rows, packed one piece after the other."""

    def __init__(self, pieces: Sequence[Piece], device: torch.device) -> None:
        self._pieces = pieces
        self._device = device
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """See `SlotStep.attend`."""
        outputs, first = [], 0
        for piece in self._pieces:
            tokens = slice(first, first + piece.end - piece.start)
            q, k, v = query[:, :, tokens], key[:, :, tokens], value[:, :, tokens]
            outputs.append(self._attend_piece(piece, layer, q, k, v, scores)[0].transpose(0, 1))
            first = tokens.stop
        return torch.cat(outputs)[None]

    def _attend_piece(
        self, piece: Piece, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        assert piece.row.slab is not None
        keys, values = piece.row.slab.layer(layer, key, value)
        slot, start, end = piece.row.slot, piece.start, piece.end
        keys[slot, :, start:end] = key[0]
        values[slot, :, start:end] = value[0]
        window = scores.window if scores.window is not None and end > scores.window else None
        if start == 0 and window is None and scores.softcap is None:
            # The flag instead of a mask selects the flash kernel.
            return F.scaled_dot_product_attention(
                query, key, value, scale=scores.scaling, is_causal=True, enable_gqa=True
            )
        low = 0 if window is None else max(0, start + 1 - window)
        repeats = query.shape[1] // key.shape[1]
        k = keys[slot : slot + 1, :, low:end].repeat_interleave(repeats, dim=1)
        v = values[slot : slot + 1, :, low:end].repeat_interleave(repeats, dim=1)
        return _weigh(query, k, v, self._mask(start, end, low, window, query.dtype), scores)

    def _mask(self, start: int, end: int, low: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive [end - start, end - low]: the token at i sees those at i - window < j <= i."""
        if (start, end, window) not in self._masks:
            at_i1 = torch.arange(start, end, device=self._device)[:, None]
            at_1j = torch.arange(low, end, device=self._device)[None]
            seen = at_1j <= at_i1
            if window is not None:
                seen &= at_1j > at_i1 - window
            self._masks[start, end, window] = _additive(seen, dtype)
        return self._masks[start, end, window]
