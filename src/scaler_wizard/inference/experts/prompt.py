"""What is asked of the routed engine and what comes back: content, answer, and the seam for images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from scaler_wizard.inference.experts.counters import Counters

BASE = "base"
"""The label of the base model itself; no expert may take it."""


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedPrompt:
    """A content that is more than token ids: what the decoder reads instead of its embeddings.

    All of one device and of the model's format; T tokens, V of them visual.
    """

    embeds: Tensor
    """Input embeddings [T, h], images in place."""
    positions: Tensor
    """Rotary positions [3, T]: time, height, width."""
    visual: Tensor
    """[T] bool: which tokens are of an image."""
    deepstack: tuple[Tensor, ...] = ()
    """[V, h] each: added to the visual tokens after the first, second, ... decoder layer."""
    vision_encodes: int = 0
    """Images encoded to make this; those taken from a cache do not count."""

    @property
    def next_position(self) -> int:
        """Rotary position of the first token after the content."""
        return int(self.positions.max()) + 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """The content: what the base reads once, before anything is known about the expert."""

    tokens: tuple[int, ...]
    """Token ids, at least one. Equal ids mean equal content, so that a visual token has an id of its image:
    negative, made of the image's hash and its place in it; it is never embedded."""
    embedded: EmbeddedPrompt | None = None
    """Needed where `tokens` has negative ids; T is their number."""

    def __post_init__(self) -> None:
        assert self.tokens, "an empty content has nothing to route"
        assert self.embedded is None or self.embedded.embeds.shape[0] == len(self.tokens)
        assert self.embedded is not None or min(self.tokens) >= 0, "visual tokens without their embeddings"
        assert self.tokens[-1] >= 0, "a content ends in text: its last token may be read again"


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    """One question to the routed engine. Its result is a function of the engine's models and of these."""

    prompt: Prompt
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer; none of them is part of it."""
    expert: str | None = None
    """A label skips the router; `BASE` asks the base alone; None lets the router decide."""
    temperature: float = 0.0
    seed: int | str = 0


@dataclass(frozen=True, slots=True)
class RoutedAnswer:
    """One finished answer and how it came about."""

    tokens: tuple[int, ...]
    """Generated token ids, without prompt, invocation and stop token."""
    finish: Literal["stop", "length"]
    expert: str
    """Label of the expert that answered, or `BASE`."""
    confidence: float | None
    """Probability of the router's first label, whether it was followed or not; None without a router."""
    abstained: bool
    """The router was unsure: the answer is the fallback's."""
    probabilities: tuple[float, ...]
    """By the router's labels; empty without a router."""
    counters: Counters = field(default=Counters())
