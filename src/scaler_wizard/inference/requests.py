"""What is asked of the engine and what comes back. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Request:
    """One continuation to generate. Its result is a function of the model and of these fields alone."""

    prompt: tuple[int, ...]
    """Token ids, at least one."""
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the continuation; none of them is part of it."""
    temperature: float = 0.0
    """0 is greedy; above 0 divides the logits before sampling from the whole vocabulary."""
    seed: int | str = 0
    """Seeds this request's own random generator (see `sample_seed`); unused when greedy."""
    processor: Callable[..., Any] | None = None
    """Changes the logits before each choice: an `inference.logits.LogitProcessor`."""

    def __post_init__(self) -> None:
        assert self.prompt, "an empty prompt has nothing to continue"
        assert self.max_new_tokens >= 1
        assert self.temperature >= 0

    @property
    def cache_length(self) -> int:
        """KV positions needed: every token but the last generated one is read."""
        return len(self.prompt) + self.max_new_tokens - 1


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished continuation."""

    tokens: tuple[int, ...]
    """Generated token ids, without the prompt and without the stop token."""
    finish: Literal["stop", "length"]
    """"stop": a stop token came; "length": `max_new_tokens` were generated."""


def sample_seed(seed: int, prompt_id: str | int, sample_id: int) -> str:
    """The seed of one sample of one prompt, so that a resumed run draws what the whole run would draw."""
    return f"{seed}/{prompt_id}/{sample_id}"
