"""Stand-in language models with known scores: an oracle, a reader by induction, and a random one.

They have the forward signature of transformers (past_key_values, attention_mask, logits_to_keep) and run
through the same probes as real models, so that a probe can be tested end to end: the oracle must score 1,
the random one chance.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class TokenCache:
    """What a fake model remembers: the tokens read so far, padding left out."""

    rows: list[list[int]] = field(default_factory=list)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows, as transformers' caches do."""
        self.rows = [self.rows[index] for index in indices.tolist()]


@dataclass(frozen=True, slots=True)
class FakeOutput:
    """logits [rows, kept positions, vocabulary] and the cache."""

    logits: Tensor
    past_key_values: TokenCache


class FakeModel(nn.Module):
    """Base of the fakes: subclasses answer `next_logits` for a row's tokens so far."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size)
        # Where the inputs go is read off a parameter.
        self.anchor = nn.Parameter(torch.zeros(1))

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        """Logits [vocabulary] of the token after `tokens`."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: TokenCache | None = None,
        use_cache: bool = True,
        logits_to_keep: int | Tensor = 0,
        **_: Any,
    ) -> FakeOutput:
        """Logits at the kept positions, as a causal language model of transformers gives them."""
        n_rows, width = input_ids.shape
        cache = past_key_values or TokenCache([[] for _ in range(n_rows)])
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -width:]
        if isinstance(logits_to_keep, int):
            kept = list(range(width))[-logits_to_keep:]
        else:
            kept = [int(position) for position in logits_to_keep.tolist()]
        logits = torch.zeros(n_rows, len(kept), self.config.vocab_size)
        for b in range(n_rows):
            row = cache.rows[b]
            for position in range(width):
                if real[b, position]:
                    row.append(int(input_ids[b, position]))
                if position in kept and row:
                    logits[b, kept.index(position)] = self.next_logits(row)
        return FakeOutput(logits, cache)

    def _certain(self, token: int) -> Tensor:
        logits = torch.zeros(self.config.vocab_size)
        logits[token] = 30.0
        return logits


class OracleModel(FakeModel):
    """Knows the continuation of every given prompt, and says `otherwise` everywhere else."""

    def __init__(
        self, vocab_size: int, answers: Mapping[tuple[int, ...], Sequence[int]], otherwise: int = 0
    ) -> None:
        super().__init__(vocab_size)
        self._next = {
            (*prompt, *answer[:i]): token
            for prompt, answer in answers.items()
            for i, token in enumerate(answer)
        }
        self._otherwise = otherwise

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        return self._certain(self._next.get(tuple(tokens), self._otherwise))


class InductionModel(FakeModel):
    """Reads: repeats what followed the earlier place that matches the latest tokens best, up to `n` of them.

    Of equally good places it takes the first or the last. It finds every needle inside the window it is
    shown and none outside, without being told any answer.
    """

    def __init__(self, vocab_size: int, n: int = 2, prefer: Literal["first", "last"] = "last") -> None:
        super().__init__(vocab_size)
        self._n = n
        self._prefer = prefer

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        ends = [end for end in range(1, len(tokens)) if tokens[end - 1] == tokens[-1]]
        if not ends:
            return self._certain(0)
        if self._prefer == "last":
            ends.reverse()
        return self._certain(tokens[max(ends, key=lambda end: self._matches(tokens, end))])

    def _matches(self, tokens: Sequence[int], end: int) -> int:
        """How many tokens before `end` equal the latest ones, at most n."""
        length = 0
        while length < min(self._n, end) and tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        return length


class RandomModel(FakeModel):
    """Standard normal logits, a function of the seed and the tokens so far."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        super().__init__(vocab_size)
        self._seed = seed

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        # A string seed is hashed the same way in every process.
        seed = random.Random(f"{self._seed}/{list(tokens)}").getrandbits(63)
        return torch.randn(self.config.vocab_size, generator=torch.Generator().manual_seed(seed))
