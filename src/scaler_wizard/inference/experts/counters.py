"""Work done for a request, counted and not timed: what a shared prefill saves is a number of passes."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Counters:
    """Work of one request, or of many; sums with +."""

    vision_encodes: int = 0
    """Images that went through the vision tower for this request."""
    prefills: int = 0
    """Times the content was read by the base: 1 for a routed request, 0 with a forced plain LoRA expert."""
    prefilled_tokens: int = 0
    """Content tokens read by the base."""
    shared_tokens: int = 0
    """Content tokens whose keys and values were copied from another request's."""
    router_forwards: int = 0
    """Passes made for the router alone: 1 for "early"; the others look at what the base reads anyway."""
    router_tokens: int = 0
    """Tokens read for the router: a suffix, or the content again."""
    router_decode_steps: int = 0
    """Tokens generated before the expert was known."""
    expert_prefills: int = 0
    """Times the whole content was read again with an expert's adapter on (mode "lora")."""
    expert_tokens: int = 0
    """Prompt tokens read with an adapter on: the invocation, or all of them in mode "lora"."""
    decode_steps: int = 0
    """Tokens that went through a decode step."""

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))
