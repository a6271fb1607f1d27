"""Bulk answers that a kill does not change: chunks that are written whole, one random generator a sample.

A chunk is asked again as a whole when it was not finished, in the same company: samples of a request depend
on its neighbours only through the rounding of matrix products, and so not even through that. What was written
is found again by the digest of everything it depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.inference.generate import generate
from scaler_wizard.inference.requests import Request, sample_seed
from scaler_wizard.store.durable import write_atomic

CHUNK_REQUESTS = 1024
"""About a minute's loss at most on a small machine, and long enough to keep every slot busy."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt, and how often it is to be answered."""

    id: str
    """Seeds its samples, so it is unique among the prompts of one key."""
    prompt: tuple[int, ...]
    max_new_tokens: int
    samples: int = 0
    """Samples beside the likeliest answer."""
    greedy: bool = True
    """Whether the likeliest answer is wanted, before the samples."""
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Sampled:
    """One answer."""

    text: str
    tokens: int
    ended: bool
    """False where it reached the token limit."""


@dataclass(frozen=True)
class Sampler:
    """Answers of one model in one phase.

    Args:
        model: what `inference.generate` takes.
        decode: token ids to text, special tokens left out.
        stop_ids: tokens that end an answer.
        directory: where finished chunks lie.
        weights: names the weights; answers of other weights are not taken for theirs.
        on_progress: (done, total) of all requests of one call.
        on_tokens: how many tokens an answer took, when it was generated; nothing for one that is found again.
    """

    model: Any
    decode: Callable[[Sequence[int]], str]
    directory: Path
    weights: str
    seed: int
    on_progress: Callable[[int, int], None]
    on_tokens: Callable[[int], None]

    def answers(self, key: str, asks: Sequence[Ask], stop_ids: frozenset[int]) -> list[list[Sampled]]:
        """Every ask's answers, the likeliest first where it is wanted. `key` names the file."""
        requests, owners = [], []
        for at, ask in enumerate(asks):
            # Sample 0 is the greedy one, so that its number never changes what a sample draws.
            for sample in range(0 if ask.greedy else 1, ask.samples + 1):
                temperature = ask.temperature if sample else 0.0
                seed = sample_seed(self.seed, f"{key}/{ask.id}", sample)
                requests.append(Request(ask.prompt, ask.max_new_tokens, stop_ids, temperature, seed))
                owners.append(at)
        found: list[list[Sampled]] = [[] for _ in asks]
        for start in range(0, len(requests), CHUNK_REQUESTS):
            part = requests[start : start + CHUNK_REQUESTS]
            done = self._chunk(key, start // CHUNK_REQUESTS, part, start, len(requests))
            for owner, sampled in zip(owners[start:], done, strict=False):
                found[owner].append(sampled)
        return found

    def _chunk(
        self, key: str, number: int, requests: Sequence[Request], before: int, total: int
    ) -> list[Sampled]:
        path = self.directory / f"{key}-{number:05d}.json"
        asked = [(r.prompt, r.max_new_tokens, sorted(r.stop_ids), r.temperature, r.seed) for r in requests]
        digest = hashlib.sha256(repr((self.weights, asked)).encode()).hexdigest()
        stored = _read(path, digest, len(requests))
        if stored is None:
            generated = generate(
                self.model, requests,
                on_finished=lambda _, item: self.on_tokens(len(item.tokens)),
                on_progress=lambda done, _: self.on_progress(before + done, total),
            )  # fmt: skip
            stored = [
                Sampled(self.decode(item.tokens), len(item.tokens), item.finish == "stop")
                for item in generated
            ]
            rows = [[item.text, item.tokens, item.ended] for item in stored]
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps({"sha256": digest, "rows": rows}, ensure_ascii=False) + "\n")
        self.on_progress(before + len(requests), total)
        return stored


def _read(path: Path, digest: str, n: int) -> list[Sampled] | None:
    """A finished chunk of these very requests; None where there is none, or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["sha256"] != digest:
            return None
        found = [Sampled(str(text), int(tokens), bool(ended)) for text, tokens, ended in value["rows"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if len(found) == n else None
